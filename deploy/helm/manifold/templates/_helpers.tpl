{{/* The name of every object. It is the same in every release, so that a second release
in one cluster fails at once instead of fighting the first on every node. */}}
{{- define "manifold.name" -}}manifold{{- end }}

{{- define "manifold.selector" -}}
app.kubernetes.io/name: {{ include "manifold.name" . }}
app.kubernetes.io/component: agent
{{- end }}

{{- define "manifold.labels" -}}
{{ include "manifold.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: manifold
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "manifold.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* "true" if kubelets serve the Pods API, so that pods need not be watched. On a node
with an older kubelet, the agent asks the API server for each pod. */}}
{{- define "manifold.podsAPI" -}}
{{- if eq (toString .Values.podsAPI) "auto" -}}
{{ semverCompare ">=1.37.0-0" .Capabilities.KubeVersion.Version }}
{{- else -}}
{{ .Values.podsAPI }}
{{- end -}}
{{- end }}

{{/* "true" if an admission policy restricts writes. */}}
{{- define "manifold.restrictWrites" -}}
{{- if eq (toString .Values.restrictWrites) "auto" -}}
{{ semverCompare ">=1.32.0-0" .Capabilities.KubeVersion.Version }}
{{- else -}}
{{ .Values.restrictWrites }}
{{- end -}}
{{- end }}

{{/* "true" if the agent is in the host's network namespace. It is there to see the host's
links, which reconciling needs. It is also there if the plugin may not know any pod
without a running agent, because a node's kubelet may be older than the API server: the
agent's own pod must then start without the plugin. */}}
{{- define "manifold.hostNetwork" -}}
{{ or (ne .Values.reconcile "off") (ne (toString .Values.podsAPI) "true") }}
{{- end }}

{{- define "manifold.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- with .Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.apiServer.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* "true" if HTTP is served on the host's loopback only. */}}
{{- define "manifold.loopback" -}}
{{ and (eq (include "manifold.hostNetwork" .) "true") (not .Values.http.public) }}
{{- end }}

{{- define "manifold.probe" -}}
httpGet:
  port: {{ .root.Values.http.port }}
  path: {{ .path }}
  {{- if eq (include "manifold.loopback" .root) "true" }}
  host: 127.0.0.1
  {{- end }}
periodSeconds: {{ .period }}
timeoutSeconds: 6 # the agent itself gives up after 5
failureThreshold: 3
{{- end }}

{{/* The configuration files of agent and plugin. The checkpoint of claims is left out: it
is next to pods' secrets in the kubelet's own directory, and PodResources tells the
same. */}}
{{- define "manifold.configFiles" -}}
{{- $host := .Values.host }}
{{- $agent := dict "apiServer" "in-cluster" "kubeletDir" $host.kubeletDir "cniDir" $host.stateDir
    "snapshot" (printf "%s/definitions.snapshot" $host.stateDir) "cniConfig" (printf "%s/%s" $host.cniConfDir $host.cniConfName)
    "reconcile" .Values.reconcile "claimCheckpoint" "-" }}
{{- if ne $host.kubeletDir "/var/lib/kubelet" }}
{{- $_ := set $agent "checkpoint" "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint" }}
{{- end }}
{{- with .Values.startupTaint }}{{ $_ := set $agent "startupTaint" . }}{{ end }}
{{- if ne .Values.logFormat "json" }}{{ $_ := set $agent "logFormat" .Values.logFormat }}{{ end }}
{{- with .Values.traces }}{{ $_ := set $agent "traces" . }}{{ end }}
{{- with .Values.reconcileExclude }}{{ $_ := set $agent "reconcileExclude" . }}{{ end }}
{{- if .Values.dra }}{{ $_ := set $agent "resourceSlices" true }}{{ else }}{{ $_ := set $agent "deviceMetadata" "-" }}{{ end }}
{{- with .Values.http.port }}
{{- $_ := set $agent "listen" (printf "%s:%d" (ternary "127.0.0.1" "" (eq (include "manifold.loopback" $) "true")) (int .)) }}
{{- end -}}
{{- if and .Values.http.port (eq (int .Values.http.port) (int .Values.view.port)) }}{{ fail "values: http.port and view.port are one port" }}{{ end -}}
{{- with .Values.view.port }}{{ $_ := set $agent "view" (printf ":%d" (int .)) }}{{ end -}}
agent.json: |
  {{- toPrettyJson $agent | nindent 2 }}
plugin.json: |
  {{- merge (dict "deviceInfoDir" $host.deviceInfoDir) .Values.config | toPrettyJson | nindent 2 }}
{{- end }}

{{/* What all pods have in common. Arguments: .root, .account, .token (whether the pod gets
the account's token) and .hostNetwork. */}}
{{- define "manifold.pod" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .token }}
priorityClassName: {{ .root.Values.priorityClassName }}
enableServiceLinks: false
hostNetwork: {{ .hostNetwork }}
# Nothing looks up names, and the cluster's resolver needs a network.
dnsPolicy: Default
# A node without a network needs these pods most.
tolerations:
  - operator: Exists
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with omit .root.Values.nodeSelector "kubernetes.io/os" }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with .root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  # The kubelet's sockets and the runtime's directories belong to root.
  runAsUser: 0
  runAsGroup: 0
  seccompProfile:
    type: RuntimeDefault
  {{- with .root.Values.seLinuxType | default (ternary "spc_t" "" .root.Values.openshift.securityContextConstraints) }}
  seLinuxOptions:
    type: {{ . }}
  {{- end }}
{{- end }}

{{/* What all containers without privileges have in common. */}}
{{- define "manifold.container" -}}
image: {{ include "manifold.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
resources: {{- toYaml .Values.resources | nindent 2 }}
{{- end }}

{{- define "manifold.uninstall.selector" -}}
app.kubernetes.io/name: {{ include "manifold.name" . }}
app.kubernetes.io/component: uninstall
{{- end }}

{{- define "manifold.uninstall.labels" -}}
{{ include "manifold.uninstall.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: manifold
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The annotations of a hook. The argument is its weight, which orders the hooks. */}}
{{- define "manifold.uninstall.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
