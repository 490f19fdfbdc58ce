{{- define "manifold.webhook.name" -}}{{ include "manifold.name" . }}-webhook{{- end }}

{{- define "manifold.webhook.selector" -}}
app.kubernetes.io/name: {{ include "manifold.name" . }}
app.kubernetes.io/component: webhook
{{- end }}

{{- define "manifold.webhook.labels" -}}
{{ include "manifold.webhook.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: manifold
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The parts of the nodes' configuration that the rules need. */}}
{{- define "manifold.webhook.plugin" -}}
{{- $config := deepCopy .Values.config }}
{{- with .Values.clusterNetwork }}{{ $_ := set $config "clusterNetwork" . }}{{ end }}
{{- toPrettyJson $config }}
{{- end }}

{{- define "manifold.webhook.configuration" -}}
metadata:
  name: {{ include "manifold.name" . }}
  labels: {{- include "manifold.webhook.labels" . | nindent 4 }}
  {{- if eq .Values.webhook.certificates "cert-manager" }}
  annotations:
    cert-manager.io/inject-ca-from: {{ .Release.Namespace }}/{{ include "manifold.webhook.name" . }}
  {{- end }}
{{- end }}

{{/* What all webhooks have in common. Namespaces with this label are left alone: it is the
way out when admission itself is the obstacle. */}}
{{- define "manifold.webhook.client" -}}
admissionReviewVersions: [v1]
sideEffects: None
matchPolicy: Equivalent
failurePolicy: {{ .root.Values.webhook.failurePolicy }}
timeoutSeconds: {{ .root.Values.webhook.timeoutSeconds }}
clientConfig:
  service:
    name: {{ include "manifold.webhook.name" .root }}
    namespace: {{ .root.Release.Namespace }}
    path: {{ .path }}
namespaceSelector:
  matchExpressions:
    - {key: manifold.dev/admission, operator: NotIn, values: [ignore]}
{{- end }}

{{/* The pods that concern admission. No other pod ever waits for it, nor does the kubelet's
mirror of a static pod, which already runs. */}}
{{- define "manifold.webhook.pods" -}}
rules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
    scope: Namespaced
matchConditions:
  - name: annotated
    expression: >-
      ['k8s.v1.cni.cncf.io/networks', 'v1.multus-cni.io/default-network', 'manifold.dev/network-status-volume']
      .exists(key, key in object.metadata.?annotations.orValue({}))
  - name: not-a-mirror
    expression: "!('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({}))"
{{- end }}
