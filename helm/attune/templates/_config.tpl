{{/* The services' settings, as their TOML files have them. Numbers stay whole only in a dict that is never
     turned into text on the way: the common part is put `into` one. */}}

{{/* Where a component's model lies in its pod. */}}
{{- define "attune.modelPath" -}}
{{- $m := (index .root.Values .component).model -}}
{{- if eq $m.source "image" }}{{ $m.path -}}
{{- else if eq $m.source "claim" }}{{ printf "/models/%s" (trimPrefix "/" $m.path) | trimSuffix "/" -}}
{{- else }}{{ printf "/models/%s" (replace "/" "--" $m.hub.id) -}}
{{- end -}}
{{- end }}

{{- define "attune.config.common" -}}
{{- $v := index .root.Values .component -}}
{{- $e := $v.engine -}}
{{- $server := dict "listen" (printf "%s:%d" (include "attune.listenHost" .root) (int $v.service.port)) "admin_listen" (printf "%s:%d" (include "attune.listenHost" .root) (int .root.Values.monitoring.adminPort)) "drain_seconds" (int $v.drainSeconds) -}}
{{- if include "attune.tlsOn" .root }}
{{- $shown := ternary "/tls-clients" "/tls" (and (eq .component "generator") (ne .root.Values.tls.clients.secret "")) -}}
{{- $_ := set $server "tls" (dict "cert" (printf "%s/tls.crt" $shown) "key" (printf "%s/tls.key" $shown)) -}}
{{- else }}
{{- $_ := set $server "insecure" true -}}
{{- end }}
{{- $own := dict "model" (include "attune.modelPath" .) "slots" (int $e.slots) "threads" (int $e.threads) "dtype" $e.dtype "quantize" $e.quantize "server" $server "log" (dict "filter" .root.Values.log.filter "format" .root.Values.log.format) -}}
{{- $id := $v.model.id }}
{{- if and (not $id) (eq $v.model.source "hub") }}{{ $id = $v.model.hub.id }}{{ end }}
{{- with $e.device }}{{ $_ := set $own "device" . }}{{ end }}
{{- with $id }}{{ $_ := set $own "model_id" . }}{{ end }}
{{- if gt (int $e.cacheMib) 0 }}{{ $_ := set $own "cache_mib" (int $e.cacheMib) }}{{ end }}
{{- if gt (int $e.context) 0 }}{{ $_ := set $own "context" (int $e.context) }}{{ end }}
{{- with .root.Values.telemetry.endpoint }}{{ $_ := set $own "telemetry" (dict "endpoint" .) }}{{ end }}
{{- $_ := merge .into $own -}}
{{- end }}

{{- define "attune.listenHost" -}}
{{- ternary (printf "[%s]" .Values.listenAddress) .Values.listenAddress (contains ":" .Values.listenAddress) -}}
{{- end }}

{{- define "attune.config.generator" -}}
{{- $own := dict "root" . "component" "generator" -}}
{{- $workers := dict "root" . "component" "reward" -}}
{{- $v := .Values.generator -}}
{{- $service := printf "%s.%s.svc.%s:%d" (include "attune.componentName" $workers) .Release.Namespace .Values.clusterDomain (int .Values.reward.service.port) -}}
{{- $config := dict -}}
{{- include "attune.config.common" (set $own "into" $config) -}}
{{- $_ := set $config "queue" (int $v.queue) -}}
{{- $_ := set $config "max_tokens" (int $v.maxTokens) -}}
{{- if include "attune.tlsOn" . }}
{{- $_ := set $config "reward" (list (printf "https+dns://%s" $service)) -}}
{{- $_ := set $config "reward_tls" (dict "ca" "/tls/ca.crt" "cert" "/tls/tls.crt" "key" "/tls/tls.key" "server_name" (include "attune.host" $workers)) -}}
{{- else }}
{{- $_ := set $config "reward" (list (printf "http+dns://%s" $service)) -}}
{{- end }}
{{- $auth := dict -}}
{{- if .Values.auth.tokens.secret }}{{ $_ := set $auth "tokens" "/auth/tokens/tokens" }}{{ end }}
{{- if .Values.auth.jwks.secret }}
{{- $_ := set $auth "jwks" "/auth/jwks/jwks.json" -}}
{{- $_ := set $auth "issuer" .Values.auth.jwks.issuer -}}
{{- $_ := set $auth "audience" .Values.auth.jwks.audience -}}
{{- $_ := set $auth "owner_claim" .Values.auth.jwks.ownerClaim -}}
{{- end }}
{{- $limits := dict -}}
{{- if gt (int .Values.auth.limits.streams) 0 }}{{ $_ := set $limits "streams" (int .Values.auth.limits.streams) }}{{ end }}
{{- if gt (int .Values.auth.limits.tokensPerMinute) 0 }}{{ $_ := set $limits "tokens_per_minute" (int .Values.auth.limits.tokensPerMinute) }}{{ end }}
{{- if $limits }}{{ $_ := set $auth "limits" $limits }}{{ end }}
{{- if $auth }}{{ $_ := set $config "auth" $auth }}{{ end }}
{{- $given := deepCopy $v.settings -}}
{{- include "attune.whole" $given -}}
{{- mergeOverwrite $config $given | toToml -}}
{{- end }}

{{- define "attune.config.reward" -}}
{{- $config := dict -}}
{{- include "attune.config.common" (dict "root" . "component" "reward" "into" $config) -}}
{{- if include "attune.tlsOn" . }}
{{- $_ := set $config.server.tls "client_ca" "/tls/ca.crt" -}}
{{- $_ := set $config.server.tls "client_names" (list (include "attune.host" (dict "root" . "component" "generator"))) -}}
{{- end }}
{{- if eq .Values.profiles.store "sqlite" }}
{{- $_ := set $config "profiles" (dict "url" "sqlite:/profiles/profiles.db") -}}
{{- else if eq .Values.profiles.store "postgres" }}
{{- $_ := set $config "profiles" (dict "url_file" "/profiles/url") -}}
{{- else }}
{{- $_ := set $config "profiles" (dict "url" "") -}}
{{- end }}
{{- $given := deepCopy .Values.reward.settings -}}
{{- include "attune.whole" $given -}}
{{- mergeOverwrite $config $given | toToml -}}
{{- end }}

{{/* Values of YAML are floats: whole ones become integers, in place, which TOML tells from floats. */}}
{{- define "attune.whole" -}}
{{- range $key, $value := . }}
{{- if kindIs "map" $value }}
{{- include "attune.whole" $value -}}
{{- else if and (kindIs "float64" $value) (eq (floor $value) $value) }}
{{- $_ := set $ $key (int64 $value) -}}
{{- end }}
{{- end }}
{{- end }}
