{{/*
The objects of a file of k8s/base (files/ has links to them) under the names of this release: [root, path].
Permissions and network policies have one source of truth, whichever way they are installed.
*/}}
{{- define "localmodel.fromBase" -}}
{{- $root := index . 0 -}}
{{- $accounts := dict "localmodel-coordinator" (include "localmodel.coordinator" $root) "localmodel-ray" (include "localmodel.rayAccount" $root) -}}
{{- $fullname := include "localmodel.fullname" $root -}}
{{- $labels := include "localmodel.labels" $root | fromYaml -}}
{{- range $text := splitList "\n---\n" ($root.Files.Get (index . 1)) }}
{{- $object := fromYaml $text }}
{{- $meta := $object.metadata }}
{{- $name := printf "%s%s" $fullname (trimPrefix "localmodel" $meta.name) }}
{{- if eq $object.kind "ServiceAccount" }}{{- $name = get $accounts $meta.name }}{{- end }}
{{- /* The coordinator knows its webhooks by name, and so does KServe. */}}
{{- if hasPrefix "localmodel-webhook-server" $meta.name }}{{- $name = $meta.name }}{{- end }}
{{- if $object.webhooks }}
{{- $name = $root.Values.kserveNames | ternary "localmodelcache.serving.kserve.io" $meta.name }}
{{- range $webhook := $object.webhooks }}
{{- $_ := set $webhook.clientConfig.service "namespace" $root.Release.Namespace }}
{{- end }}
{{- end }}
{{- $_ := set $meta "name" $name }}
{{- if $meta.namespace }}
{{- $_ := set $meta "namespace" (eq $meta.namespace "kserve-localmodel-jobs" | ternary $root.Values.jobNamespace.name $root.Release.Namespace) }}
{{- end }}
{{- $_ := set $meta "labels" (merge (dict) (default (dict) $meta.labels) $labels) }}
{{- if $object.roleRef }}
{{- $_ := set $object.roleRef "name" (printf "%s%s" $fullname (trimPrefix "localmodel" $object.roleRef.name)) }}
{{- range $subject := $object.subjects }}
{{- $_ := set $subject "name" (get $accounts $subject.name) }}
{{- $_ := set $subject "namespace" $root.Release.Namespace }}
{{- end }}
{{- end }}
---
{{ toYaml $object }}
{{ end }}
{{- end -}}
