#!/bin/sh
# Make .venv with exactly the locked dependencies. Does nothing when it is there already.
set -eu
cd "$(dirname "$0")/.."
want=$(cat requirements-dev.lock local/bootstrap.sh | sha256sum | cut -d' ' -f1)
[ -f ".venv/.made-of-$want" ] && exit 0

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
   ! "$python" -c 'import ensurepip' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing python3 and python3-venv from Debian"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv >/dev/null
    python=python3
  else
    echo "setup: kvquant needs Python 3.11 or newer with venv. Install them (Debian: apt-get install" >&2
    echo "       python3 python3-venv) or point PYTHON at one." >&2
    exit 1
  fi
fi
echo "setup: making .venv from requirements-dev.lock (a minute or two, once)"
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --require-hashes -r requirements-dev.lock
# The package itself, editable, without a build backend: one line that names its folder.
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$PWD/operator" "$PWD/local" > "$site/kvquant.pth"
for name in kvquant kubectl-kvquant; do
  printf '#!%s\nimport sys\nfrom kvquant.cli import main\nsys.exit(main())\n' "$PWD/.venv/bin/python" > ".venv/bin/$name"
  chmod +x ".venv/bin/$name"
done
printf '#!%s\nfrom kvquant.cli.completing import main\nmain()\n' "$PWD/.venv/bin/python" > .venv/bin/kubectl_complete-kvquant
chmod +x .venv/bin/kubectl_complete-kvquant
touch ".venv/.made-of-$want"
