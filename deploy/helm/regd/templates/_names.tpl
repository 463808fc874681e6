{{- define "regd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "regd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "regd.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "regd.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects pods: it can't be changed later. */}}
{{- define "regd.selector" -}}
app.kubernetes.io/name: {{ include "regd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "regd.labels" -}}
{{ include "regd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "regd.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "regd.tlsSecret" -}}
{{- default (printf "%s-tls" (include "regd.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{/* All nodes, as one value of --initial-peers. */}}
{{- define "regd.initialPeers" -}}
{{- $name := include "regd.fullname" . -}}
{{- $peers := list -}}
{{- range $i := until (int .Values.replicas) -}}
{{- $peers = append $peers (printf "%s-%d.%s-peers.$(POD_NAMESPACE).svc:7401" $name $i $name) -}}
{{- end -}}
{{- join "," $peers -}}
{{- end -}}

{{- define "regd.protected" -}}
{{- if eq .Values.tls.enabled .Values.insecure -}}
{{- fail "say how the ports are protected: tls.enabled=true, or insecure=true if everybody who reaches them is trusted" -}}
{{- end -}}
{{- end -}}
