{{/* Name of the operator's objects. A release named kvquant does not say it twice. */}}
{{- define "kvquant.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if eq .Release.Name "kvquant" -}}
{{- $name | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "kvquant.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
{{- end -}}

{{/* The pod that decides. With one replica, that is the only one. */}}
{{- define "kvquant.leader" -}}
{{ include "kvquant.selector" . }}
{{- if gt (int .Values.replicas) 1 }}
kvquant.dev/leader: "true"
{{- end }}
{{- end -}}

{{- define "kvquant.labels" -}}
{{ include "kvquant.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "kvquant.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kvquant.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount to use, as serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Reference of an image: by digest if one is given, else by tag. */}}
{{- define "kvquant.image" -}}
{{- $digest := index .root.Values.image.digests .name -}}
{{- $image := printf "%s/%s" .root.Values.image.registry .name -}}
{{- if $digest -}}
{{- printf "%s@%s" $image $digest -}}
{{- else -}}
{{- printf "%s:%s" $image (default .root.Chart.AppVersion .root.Values.image.tag) -}}
{{- end -}}
{{- end -}}
