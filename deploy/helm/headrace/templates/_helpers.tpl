{{- define "headrace.name" -}}
{{- if contains "headrace" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-headrace{{ end }}
{{- end }}

{{- define "headrace.selector" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/component: controller
{{- if ne (include "headrace.name" .) "headrace" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- end }}

{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "headrace.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "headrace.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "headrace.config" -}}
grace = "{{ .Values.graceSeconds }}s"
{{ .Values.config }}
{{- end }}
