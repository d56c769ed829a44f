{{/*
What values.schema.json cannot say: values that must fit together. Each message names the keys and the numbers, and
what to do. Included by the gateway's StatefulSet, so that nothing is ever installed without it.
*/}}
{{- define "remontoir.validate" -}}
{{- include "remontoir.validate.models" . -}}
{{- include "remontoir.validate.memory" . -}}
{{- include "remontoir.validate.time" . -}}
{{- include "remontoir.validate.scaling" . -}}
{{- include "remontoir.validate.keys" . -}}
{{- end -}}

{{- define "remontoir.validate.models" -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is required: build the image from this checkout (docs/kubernetes.md), push it to a registry of yours, and give its name" -}}
{{- end -}}
{{- $models := .Values.models -}}
{{- if not $models.type -}}
{{- fail "models.type is required: existingClaim, hostPath, image or pull; it says where the model repository comes from" -}}
{{- end -}}
{{- $needed := dict "existingClaim" "name" "hostPath" "path" "image" "reference" "pull" "source" -}}
{{- $key := get $needed $models.type -}}
{{- if not (or (get (get $models $models.type) $key) (and (eq $models.type "pull") $models.pull.args)) -}}
{{- fail (printf "models.%s.%s is required with models.type %s" $models.type $key $models.type) -}}
{{- end -}}
{{- if and (eq $models.type "image") (semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "models.type image needs Kubernetes 1.31 with the ImageVolume feature, this is %s: use pull or existingClaim" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.memory" -}}
{{- $worker := .Values.worker -}}
{{- $page := int64 (include "remontoir.pageMb" .) -}}
{{- if $worker.cacheMb -}}
{{- if lt (int64 $worker.cacheMb) $page -}}
{{- fail (printf "worker.cacheMb is %d, less than one page of gateway.settings.page_mb %d" (int64 $worker.cacheMb) $page) -}}
{{- end -}}
{{- end -}}
{{- if eq $worker.mode "cpu" -}}
{{- $cache := int64 (default 1024 $worker.cacheMb) -}}
{{- $limit := dig "resources" "limits" "memory" "" $worker -}}
{{- if $limit -}}
{{- $mib := int64 (include "remontoir.mebibytes" $limit) -}}
{{- if le $mib $cache -}}
{{- fail (printf "worker.cacheMb is %d MiB, and worker.resources.limits.memory %v is %d MiB: in CPU mode the cache lies in the container's memory, beside at least as much for engines and tensors" $cache $limit $mib) -}}
{{- end -}}
{{- end -}}
{{- else if and $worker.gpu.memoryMb $worker.cacheMb -}}
{{- if gt (int64 $worker.cacheMb) (int64 $worker.gpu.memoryMb) -}}
{{- fail (printf "worker.cacheMb is %d MiB, and worker.gpu.memoryMb says that a card has %d" (int64 $worker.cacheMb) (int64 $worker.gpu.memoryMb)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.time" -}}
{{- $gateway := .Values.gateway -}}
{{- $needed := int64 (include "remontoir.stopSeconds" .) -}}
{{- $given := $gateway.terminationGracePeriodSeconds -}}
{{- if $given -}}
{{- if lt (int64 $given) $needed -}}
{{- fail (printf "gateway.terminationGracePeriodSeconds is %d, and stopping may take %d: gateway.preStopSeconds %d, settings drain_s and answer_grace_s, and 11 s for refusals, slow readers and workers. Leave it empty to have it computed" (int64 $given) $needed (int64 $gateway.preStopSeconds)) -}}
{{- end -}}
{{- end -}}
{{- $settings := $gateway.settings -}}
{{- $slo := float64 (ternary $settings.default_slo_ms 1000 (hasKey $settings "default_slo_ms")) -}}
{{- $answer := float64 (ternary $settings.answer_grace_s 20 (hasKey $settings "answer_grace_s")) -}}
{{- if gt $slo (mulf $answer 1000.0) -}}
{{- fail (printf "gateway.settings.default_slo_ms is %v, longer than gateway.settings.answer_grace_s %v s: a gateway that stops would give such requests up" $slo $answer) -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.scaling" -}}
{{- if eq (int .Values.gateway.port) (int .Values.gateway.workerPort) -}}
{{- fail (printf "gateway.port and gateway.workerPort are both %d" (int .Values.gateway.port)) -}}
{{- end -}}
{{- if and (gt (int .Values.gateway.replicas) 1) .Values.gateway.groups -}}
{{- fail (printf "gateway.groups and gateway.replicas %d: the models of a group may be on different gateways, so groups need one gateway" (int .Values.gateway.replicas)) -}}
{{- end -}}
{{- $auto := .Values.autoscaling -}}
{{- if and $auto.keda.enabled $auto.hpa.enabled -}}
{{- fail "autoscaling.keda.enabled and autoscaling.hpa.enabled are both true: two autoscalers would fight over the workers, choose one" -}}
{{- end -}}
{{- if and (include "remontoir.isAutoscaled" .) (eq (include "remontoir.workerKind" .) "DaemonSet") -}}
{{- fail "autoscaling needs worker.kind StatefulSet: a DaemonSet has a worker on each node, and its size is that of the node group" -}}
{{- end -}}
{{- if gt (int64 $auto.minReplicas) (int64 $auto.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %d, above autoscaling.maxReplicas %d" (int64 $auto.minReplicas) (int64 $auto.maxReplicas)) -}}
{{- end -}}
{{- if and $auto.keda.enabled (not $auto.keda.prometheusAddress) -}}
{{- fail "autoscaling.keda.prometheusAddress is required: KEDA asks that Prometheus for the gateway's figures" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs is required with httpRoute.enabled: the Gateway that the route belongs to" -}}
{{- end -}}
{{- $limits := dig "limits" dict .Values.worker.resources -}}
{{- range $name := list (dig "resourceName" "nvidia.com/gpu" .Values.worker.gpu) -}}
{{- if hasKey $limits $name -}}
{{- fail (printf "worker.resources.limits has %s: say worker.gpusPerPod instead, from which request and limit are made" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.keys" -}}
{{- $curve := .Values.curve -}}
{{- if and $curve.enabled (ne (empty $curve.existingGatewaySecret) (empty $curve.existingWorkerSecret)) -}}
{{- fail "curve.existingGatewaySecret and curve.existingWorkerSecret belong together: give both (`remontoir keys curve`), or neither, to have them made once" -}}
{{- end -}}
{{- if and .Values.auth.existingTenantsSecret .Values.auth.tenants -}}
{{- fail "auth.existingTenantsSecret and auth.tenants are both given: one is enough" -}}
{{- end -}}
{{- /* Only where there is a cluster to ask: `helm template` and --dry-run have none. */ -}}
{{- if lookup "v1" "Namespace" "" .Release.Namespace -}}
{{- if $curve.enabled -}}
{{- include "remontoir.validate.secret" (list . "curve.existingGatewaySecret" $curve.existingGatewaySecret (list "gateway.key_secret" (printf "%s.key" (first $curve.workerNames)))) -}}
{{- include "remontoir.validate.secret" (list . "curve.existingWorkerSecret" $curve.existingWorkerSecret (list "worker.key_secret" "gateway.key")) -}}
{{- end -}}
{{- if .Values.auth.enabled -}}
{{- include "remontoir.validate.secret" (list . "auth.existingTenantsSecret" .Values.auth.existingTenantsSecret (list "tenants.yaml")) -}}
{{- end -}}
{{- include "remontoir.validate.secret" (list . "gateway.tls.existingSecret" .Values.gateway.tls.existingSecret (list "tls.crt" "tls.key")) -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.secret" -}}
{{- $root := index . 0 -}}
{{- $name := index . 2 -}}
{{- if $name -}}
{{- $secret := lookup "v1" "Secret" $root.Release.Namespace $name -}}
{{- if not $secret -}}
{{- fail (printf "%s: there is no Secret %s in namespace %s" (index . 1) $name $root.Release.Namespace) -}}
{{- end -}}
{{- $data := $secret.data | default dict -}}
{{- range index . 3 -}}
{{- if not (hasKey $data .) -}}
{{- fail (printf "%s: Secret %s has no key %s; it has %s" (index $ 1) $name . (keys $data | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
