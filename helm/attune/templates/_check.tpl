{{/* What a schema cannot say: values that do not go together. Each message says what to do. */}}
{{- define "attune.check" -}}
{{- range $component := list "generator" "reward" }}
{{- $v := index $.Values $component }}
{{- $most := int (include "attune.mostPods" (dict "root" $ "component" $component)) }}
{{- $claim := $v.model.claim }}
{{- if and (eq $v.model.source "hub") (not $v.model.hub.id) }}
{{- fail (printf "%s.model.source is hub: set %s.model.hub.id to an id such as org/name" $component $component) }}
{{- end }}
{{- if and (eq $v.model.source "claim") (not $claim.existing) (not $claim.create) }}
{{- fail (printf "%s.model.source is claim: set %s.model.claim.existing, or %s.model.claim.create=true and fill the claim" $component $component $component) }}
{{- end }}
{{- if and $claim.existing $claim.create }}
{{- fail (printf "%s.model.claim: set either existing or create, not both" $component) }}
{{- end }}
{{- if and (eq $v.model.source "image") (not (hasPrefix "/" $v.model.path)) }}
{{- fail (printf "%s.model.path is %q: with source image it is an absolute path in the image" $component $v.model.path) }}
{{- end }}
{{- if and (include "attune.onOneNode" $v.model) (gt $most 1) }}
{{- fail (printf "%s may have %d pods, and its model claim serves one node: set %s.model.claim.accessModes to [ReadWriteMany], or name a claim that many can read" $component $most $component) }}
{{- end }}
{{- if and (gt (int $v.gpu.count) 0) (has $v.engine.device (list "" "cpu")) }}
{{- fail (printf "%s.gpu.count is %d and %s.engine.device is cpu: set engine.device to cuda:0 or auto, or the card is reserved and not used" $component (int $v.gpu.count) $component) }}
{{- end }}
{{- if and (hasPrefix "cuda" $v.engine.device) (eq (int $v.gpu.count) 0) }}
{{- fail (printf "%s.engine.device is %s and %s.gpu.count is 0: set gpu.count, or the pod sees no card" $component $v.engine.device $component) }}
{{- end }}
{{- if and (ne $v.autoscaling.kind "none") (gt (int $v.autoscaling.min) (int $v.autoscaling.max)) }}
{{- fail (printf "%s.autoscaling: min is %d and max %d; min must not be above max" $component (int $v.autoscaling.min) (int $v.autoscaling.max)) }}
{{- end }}
{{- if and (eq $v.autoscaling.kind "keda") (not $.Values.monitoring.keda.serverAddress) }}
{{- fail (printf "%s.autoscaling.kind is keda: set monitoring.keda.serverAddress to your Prometheus, such as http://prometheus.monitoring:9090" $component) }}
{{- end }}
{{- if and (eq $.Values.tls.source "secrets") (not (index $.Values.tls.secrets $component)) }}
{{- fail (printf "tls.source is secrets: set tls.secrets.%s to a Secret with tls.crt, tls.key and ca.crt" $component) }}
{{- end }}
{{- end }}
{{- $workers := int (include "attune.mostPods" (dict "root" . "component" "reward")) }}
{{- if and (eq .Values.profiles.store "sqlite") (gt $workers 1) }}
{{- fail (printf "profiles.store is sqlite, which serves one reward worker, and there may be %d: set profiles.store=postgres with profiles.postgres.secret, or profiles.store=none" $workers) }}
{{- end }}
{{- if and (eq .Values.profiles.store "postgres") (not .Values.profiles.postgres.secret) }}
{{- fail "profiles.store is postgres: set profiles.postgres.secret to a Secret that holds the database's URL" }}
{{- end }}
{{- $callers := or .Values.auth.tokens.secret .Values.auth.jwks.secret }}
{{- if and $callers (eq .Values.tls.source "none") }}
{{- fail "auth is set and tls.source is none: tokens would travel in plain text; choose generated, cert-manager or secrets" }}
{{- end }}
{{- if and .Values.auth.jwks.secret (not (and .Values.auth.jwks.issuer .Values.auth.jwks.audience)) }}
{{- fail "auth.jwks.secret is set: set auth.jwks.issuer and auth.jwks.audience too, or tokens for other services would count here" }}
{{- end }}
{{- with .Values.tls.clients }}
{{- if and .secret (eq $.Values.tls.source "none") }}
{{- fail "tls.clients.secret is set and tls.source is none: choose generated, cert-manager or secrets" }}
{{- end }}
{{- if ne (empty .secret) (empty .name) }}
{{- fail "tls.clients: set both secret and name, the name that its certificate is for" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Not empty where a model lies in a claim that the chart makes and one node alone can mount. */}}
{{- define "attune.onOneNode" -}}
{{- $many := or (has "ReadWriteMany" .claim.accessModes) (has "ReadOnlyMany" .claim.accessModes) -}}
{{- if and (ne .source "image") .claim.create (not $many) }}true{{ end -}}
{{- end }}
