{{/* Name of the release's objects. */}}
{{- define "podswitch.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Cluster-scoped objects also carry the namespace, so that two releases do not clash. */}}
{{- define "podswitch.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "podswitch.fullname" .) -}}
{{- end }}

{{- define "podswitch.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "podswitch.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "podswitch.selectorLabels" -}}
app.kubernetes.io/name: podswitch
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "podswitch.labels" -}}
{{ include "podswitch.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "podswitch.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}

{{- define "podswitch.listenAddress" -}}
{{- if eq .Values.agent.listen "all" }}[::]{{ else }}127.0.0.1{{ end }}:{{ .Values.agent.port }}
{{- end }}

{{/* Whether the cluster knows ValidatingAdmissionPolicy and puts the node's name into agents' tokens. */}}
{{- define "podswitch.hasAdmissionPolicy" -}}
{{- if and .Values.admissionPolicy.enabled (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}true{{ end -}}
{{- end }}

{{/* Flags of `vswitch run`, one a line. */}}
{{- define "podswitch.arguments" -}}
- run
- --node=$(NODE_NAME)
- --kubernetes
- --run-dir={{ .Values.agent.runDir }}
- --wait
{{- if .Values.agent.handOver }}
# The surge pod takes over from the running one, which the kubelet would start again if it ended.
- --take-over
- --stay
{{- end }}
# Another follows; after the last one the Job `uninstall` removes what it leaves.
- --keep
# A process that the agent started would end with its container.
- --hold={{ if include "podswitch.hasHolder" . }}use{{ else }}off{{ end }}
- --proc-sys=/host/proc/sys
# Annotations of pods are their authors'.
- --pod-annotations=ignore
- --metrics-address={{ include "podswitch.listenAddress" . }}
- --kube-proxy={{ .Values.kubeProxy }}
- --workers={{ .Values.workers }}
{{- with .Values.apiServers }}
- --api-server={{ join "," . }}
{{- end }}
{{- if .Values.cni.install }}
- --cni-bin-dir=/host/cni/bin
- --cni-conf-dir=/host/cni/net.d
{{- end }}
{{- with .Values.mtu }}
- --mtu={{ . }}
{{- end }}
{{- range .Values.cluster.serviceCIDRs }}
- --service-cidr={{ . }}
{{- end }}
{{- range .Values.cluster.clusterCIDRs }}
- --cluster-cidr={{ . }}
{{- end }}
{{- range .Values.cluster.allowExternalIPs }}
- --allow-external-ips={{ . }}
{{- end }}
- --masquerade={{ .Values.cluster.masquerade }}
{{- if .Values.cluster.hashKeySecret }}
- --hash-key=$(HASH_KEY)
{{- end }}
- --routing={{ .Values.overlay.routing }}
- --underlay-family={{ .Values.overlay.underlayFamily }}
{{- with .Values.overlay.vni }}
- --vni={{ . }}
{{- end }}
{{- with .Values.overlay.port }}
- --vxlan-port={{ . }}
{{- end }}
{{- if eq .Values.overlay.underlay "packet" }}
- --underlay=packet
{{- end }}
{{- with .Values.overlay.uplink }}
- --uplink={{ . }}
{{- end }}
{{- range .Values.agent.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{/* Capabilities: devices and packet sockets, namespaces; /proc/PID/ns/net of other processes. */}}
{{- define "podswitch.securityContext" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add:
    - NET_ADMIN
    - NET_RAW
    - SYS_ADMIN
    {{- if .Values.cni.processNamespaces }}
    - SYS_PTRACE
    {{- end }}
seccompProfile:
  type: RuntimeDefault
{{- if and .Values.agent.appArmorProfile (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}
appArmorProfile:
  type: {{ .Values.agent.appArmorProfile }}
{{- end }}
{{- end }}

{{/* Whether there is a container that keeps the devices: init containers that go on need Kubernetes 1.29. */}}
{{- define "podswitch.hasHolder" -}}
{{- if and .Values.agent.hold.enabled (semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version) }}true{{ end -}}
{{- end }}

{{/* It keeps open descriptors, for the same user as the agent. */}}
{{- define "podswitch.holderSecurityContext" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Folders and the device of the node. */}}
{{- define "podswitch.volumeMounts" -}}
- name: run
  mountPath: {{ .Values.agent.runDir }}
{{- if ne .Values.agent.runDir "/run/podswitch" }}
# What the node's settings were before the agent changed them is recorded here, whatever the run directory is.
- name: run
  mountPath: /run/podswitch
{{- end }}
# By the names that runtimes give them: /var/run is a link to /run on the node, and not in the image.
{{- range list "/run/netns" "/var/run/netns" .Values.cni.netnsDir | uniq }}
- name: netns
  mountPath: {{ . }}
  mountPropagation: HostToContainer
{{- end }}
- name: tun
  mountPath: /dev/net/tun
# A container's own /proc/sys is read-only; what is below net there is that of the network namespace that looks.
- name: proc-sys-net
  mountPath: /host/proc/sys/net
{{- if .Values.cni.install }}
- name: cni-bin
  mountPath: /host/cni/bin
- name: cni-conf
  mountPath: /host/cni/net.d
{{- end }}
{{- end }}

{{- define "podswitch.volumes" -}}
- name: run
  hostPath: {path: {{ .Values.agent.runDir | quote }}, type: DirectoryOrCreate}
- name: netns
  hostPath: {path: {{ .Values.cni.netnsDir | quote }}, type: DirectoryOrCreate}
- name: tun
  hostPath: {path: /dev/net/tun, type: CharDevice}
- name: proc-sys-net
  hostPath: {path: /proc/sys/net, type: Directory}
{{- if .Values.cni.install }}
- name: cni-bin
  hostPath: {path: {{ .Values.cni.binDir | quote }}, type: DirectoryOrCreate}
- name: cni-conf
  hostPath: {path: {{ .Values.cni.confDir | quote }}, type: DirectoryOrCreate}
{{- end }}
{{- end }}
