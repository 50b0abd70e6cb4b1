{{- define "fedgraft.role" -}}
{{- if not (has .Values.role (list "node" "server")) }}{{ fail "role must be node or server" }}{{ end -}}
{{ .Values.role }}
{{- end }}

{{- define "fedgraft.labels" -}}
app.kubernetes.io/name: fedgraft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ include "fedgraft.role" . }}
{{- end }}

{{- define "fedgraft.image" -}}
{{ .Values.image.repository | default (printf "fedgraft-%s" .Values.role) }}:{{ .Values.image.tag }}
{{- end }}

{{- define "fedgraft.walls" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
