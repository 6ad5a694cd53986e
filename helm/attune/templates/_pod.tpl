{{/* What pods of both services have alike. */}}

{{- define "attune.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "attune.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "attune.probes" -}}
{{- $port := int .root.Values.monitoring.adminPort -}}
{{- $v := index .root.Values .component -}}
# By gRPC on the admin port: Kubernetes' own probes speak no TLS. It answers once the model is loaded.
startupProbe:
  grpc: {port: {{ $port }}}
  periodSeconds: 5
  failureThreshold: {{ max 1 (div (add (int $v.startupSeconds) 4) 5) }}
livenessProbe:
  grpc: {port: {{ $port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  grpc: {port: {{ $port }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{/* Fetches a hub's model into the volume, before the service starts. */}}
{{- define "attune.fetch" -}}
{{- $v := index .root.Values .component -}}
{{- $hub := $v.model.hub -}}
- name: fetch
  image: {{ include "attune.image" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command:
    - /usr/local/bin/attune
    - fetch
    - {{ $hub.id | quote }}
    {{- with $hub.revision }}
    - --revision
    - {{ . | quote }}
    {{- end }}
    - --link
    - {{ include "attune.modelPath" . }}
  env:
    - {name: HF_HUB_CACHE, value: /models/hub}
    {{- with $hub.endpoint }}
    - {name: HF_ENDPOINT, value: {{ . | quote }}}
    {{- end }}
    {{- with $hub.tokenSecret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef: {name: {{ . }}, key: {{ $hub.tokenKey }}}
    {{- end }}
  securityContext:
    {{- include "attune.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {memory: 1Gi}
  volumeMounts:
    - {name: models, mountPath: /models}
{{- end }}

{{/* The volume of the model, if any. */}}
{{- define "attune.modelVolume" -}}
{{- $m := (index .root.Values .component).model -}}
{{- $claim := ternary (printf "%s-models" (include "attune.componentName" .)) $m.claim.existing $m.claim.create -}}
{{- if ne $m.source "image" -}}
- name: models
  {{- if $claim }}
  persistentVolumeClaim: {claimName: {{ $claim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $m.hub.sizeLimit }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "attune.resources" -}}
{{- $v := index .root.Values .component -}}
{{- $resources := deepCopy $v.resources -}}
{{- if gt (int $v.gpu.count) 0 -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits $v.gpu.resource (toString (int $v.gpu.count)) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{/* Where pods may run. */}}
{{- define "attune.placement" -}}
{{- $v := index .root.Values .component -}}
{{- $tolerations := $v.tolerations -}}
{{- if gt (int $v.gpu.count) 0 }}
{{- $tolerations = append $tolerations (dict "key" $v.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $v.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ .topologyKey }}
    maxSkew: {{ .maxSkew }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "attune.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}

{{/* A component's Deployment. `volumes`, `mounts`: lists of what it has beside the common ones. */}}
{{- define "attune.deployment" -}}
{{- $v := index .root.Values .component -}}
{{- $name := include "attune.componentName" . -}}
{{- $strategy := .strategy -}}
{{- if include "attune.onOneNode" $v.model -}}
{{- /* The volume is on one node: the old pod has to let go of it first. */ -}}
{{- $strategy = dict "type" "Recreate" -}}
{{- end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "attune.labels" . | nindent 4 }}
spec:
  {{- if eq $v.autoscaling.kind "none" }}
  replicas: {{ $v.replicas }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "attune.selector" . | nindent 6 }}
  strategy:
    {{- toYaml $strategy | nindent 4 }}
  template:
    metadata:
      labels:
        {{- include "attune.labels" . | nindent 8 }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        # Settings are read at a start: other ones start other pods. Certificates and tokens are read again
        # by the running service.
        checksum/config: {{ .config | sha256sum }}
        {{- with $v.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "attune.serviceAccount" .root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      securityContext:
        {{- include "attune.podSecurity" . | nindent 8 }}
      terminationGracePeriodSeconds: {{ include "attune.graceSeconds" . }}
      {{- include "attune.placement" . | trim | nindent 6 }}
      {{- if eq $v.model.source "hub" }}
      initContainers:
        {{- include "attune.fetch" . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "attune.image" . }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [--config, /etc/attune/{{ .component }}.toml]
          {{- with $v.extraEnv }}
          env:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - {name: grpc, containerPort: {{ $v.service.port }}}
            - {name: admin, containerPort: {{ .root.Values.monitoring.adminPort }}}
          {{- include "attune.probes" . | nindent 10 }}
          lifecycle:
            preStop:
              sleep: {seconds: {{ include "attune.preStopSeconds" .root }}}
          securityContext:
            {{- include "attune.containerSecurity" . | nindent 12 }}
          resources:
            {{- include "attune.resources" . | nindent 12 }}
          volumeMounts:
            - {name: config, mountPath: /etc/attune, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            {{- if include "attune.tlsOn" .root }}
            - {name: tls, mountPath: /tls, readOnly: true}
            {{- end }}
            {{- if ne $v.model.source "image" }}
            - {name: models, mountPath: /models, readOnly: true}
            {{- end }}
            {{- range .mounts }}
            - {{ toJson . }}
            {{- end }}
      volumes:
        - name: config
          configMap: {name: {{ $name }}}
        - name: tmp
          emptyDir: {}
        {{- if include "attune.tlsOn" .root }}
        - name: tls
          secret: {secretName: {{ include "attune.tlsSecret" . }}, defaultMode: 0440}
        {{- end }}
        {{- with include "attune.modelVolume" . }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- range .volumes }}
        - {{ toJson . }}
        {{- end }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "attune.labels" . | nindent 4 }}
data:
  {{ .component }}.toml: |
    {{- .config | nindent 4 }}
{{- end }}
