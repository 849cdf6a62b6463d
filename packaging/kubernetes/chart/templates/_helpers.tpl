{{- define "peili.labels" -}}
app.kubernetes.io/name: peili
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "peili.selector" -}}
app.kubernetes.io/name: peili
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "peili.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "peili.toml" -}}
[local]
listen = "127.0.0.1:{{ .Values.ports.local }}"  # for the node's containerd

[peer]
listen = "[::]:{{ .Values.ports.peer }}"
shared_key_file = "/etc/peili-key/key"  # from the Secret; only pods with the same key are admitted

[ops]
{{- if .Values.serviceMonitor.enabled }}
listen = "[::]:{{ .Values.ports.ops }}"  # for the probes and Prometheus
{{- else }}
listen = "127.0.0.1:{{ .Values.ports.ops }}"  # for the probes
{{- end }}

[store]
kind = "containerd"
address = "{{ .Values.containerd.runDirectory }}/{{ .Values.containerd.socket }}"
namespaces = ["k8s.io"]

[router]
kind = "kubernetes"
service = "{{ .Release.Name }}"
{{- if .Values.zones.nodeLabel }}
zone_label = {{ .Values.zones.nodeLabel | toJson }}
{{- end }}

[resolver]
kind = {{ .Values.resolver | toJson }}

[mirror]
registries = {{ .Values.registries | toJson }}
exclude = {{ .Values.exclude | toJson }}

[log]
format = "json"
{{- with .Values.extraConfig }}

{{ . }}
{{- end }}
{{- end -}}
