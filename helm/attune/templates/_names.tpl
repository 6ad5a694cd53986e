{{/* Names and labels. Those of one component take (dict "root" $ "component" "generator"). */}}

{{- define "attune.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "attune.fullname" -}}
{{- $name := include "attune.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "attune.componentName" -}}
{{- include "attune.fullname" .root }}-{{ .component -}}
{{- end }}

{{/* The name in the cluster of a component's Service, which its certificate is for. */}}
{{- define "attune.host" -}}
{{- $given := index .root.Values.tls.names .component -}}
{{- default (printf "%s.%s.svc" (include "attune.componentName" .) .root.Release.Namespace) $given -}}
{{- end }}

{{/* All names of a component's certificate, as JSON {"names": [...]}. */}}
{{- define "attune.certificateNames" -}}
{{- $service := include "attune.componentName" . -}}
{{- $ns := .root.Release.Namespace -}}
{{- $names := list (include "attune.host" .) $service (printf "%s.%s" $service $ns) (printf "%s.%s.svc" $service $ns) (printf "%s.%s.svc.%s" $service $ns .root.Values.clusterDomain) -}}
{{- if eq .component "generator" }}{{ $names = concat $names .root.Values.tls.extraNames }}{{ end -}}
{{- dict "names" (uniq $names) | toJson -}}
{{- end }}

{{- define "attune.tlsSecret" -}}
{{- $own := printf "%s-tls" (include "attune.componentName" .) -}}
{{- ternary (index .root.Values.tls.secrets .component) $own (eq .root.Values.tls.source "secrets") -}}
{{- end }}

{{- define "attune.selector" -}}
app.kubernetes.io/name: {{ include "attune.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "attune.labels" -}}
{{ include "attune.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: attune
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "attune.image" -}}
{{- $image := printf "%s:%s" (index .root.Values .component).image.repository (default .root.Chart.AppVersion .root.Values.image.tag) -}}
{{- with .root.Values.image.registry }}{{ . | trimSuffix "/" }}/{{ end }}{{ $image -}}
{{- end }}

{{- define "attune.serviceAccount" -}}
{{- $own := ternary (include "attune.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $own .Values.serviceAccount.name -}}
{{- end }}

{{- define "attune.tlsOn" -}}
{{- if ne .Values.tls.source "none" }}true{{ end -}}
{{- end }}

{{/* The Secret whose `ca.crt` clients know the generator by. Nothing: they know it by the system's authorities. */}}
{{- define "attune.clientsAuthority" -}}
{{- $clients := .Values.tls.clients -}}
{{- if and (include "attune.tlsOn" .) (or (not $clients.secret) $clients.privateAuthority) -}}
{{- default (include "attune.tlsSecret" (dict "root" . "component" "generator")) $clients.secret -}}
{{- end -}}
{{- end }}

{{/* The name of the certificate that the generator shows to clients. */}}
{{- define "attune.clientsName" -}}
{{- default (include "attune.host" (dict "root" . "component" "generator")) .Values.tls.clients.name -}}
{{- end }}

{{- define "attune.url" -}}
{{ ternary "https" "http" (eq (include "attune.tlsOn" .) "true") }}://{{ include "attune.componentName" (dict "root" . "component" "generator") }}.{{ .Release.Namespace }}.svc:{{ .Values.generator.service.port }}
{{- end }}

{{/* Seconds between a pod's leaving its Services and the signal to end, so that nobody is sent to it. */}}
{{- define "attune.preStopSeconds" -}}5{{- end }}

{{/* Seconds until a pod has ended in good order: the wait above, the drain, and what comes last. */}}
{{- define "attune.graceSeconds" -}}
{{- add (int (include "attune.preStopSeconds" .root)) (int (index .root.Values .component).drainSeconds) 15 -}}
{{- end }}

{{/* The most pods that a component may have. */}}
{{- define "attune.mostPods" -}}
{{- $v := index .root.Values .component -}}
{{- ternary $v.replicas $v.autoscaling.max (eq $v.autoscaling.kind "none") -}}
{{- end }}
