{{/*
What values.schema.json cannot say: values that must fit together. Each message names the keys and the numbers, and
what to do. Included by the gateway's StatefulSet, so that nothing is ever installed without it.
*/}}
{{- define "remontoir.validate" -}}
{{- include "remontoir.validate.models" . -}}
{{- range (include "remontoir.pools" . | fromJson).pools -}}
{{- include "remontoir.validate.worker" (dict "root" $ "worker" .) -}}
{{- end -}}
{{- include "remontoir.validate.gateway" . -}}
{{- include "remontoir.validate.time" . -}}
{{- include "remontoir.validate.scaling" . -}}
{{- include "remontoir.validate.routes" . -}}
{{- include "remontoir.validate.switches" . -}}
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
{{- if and (eq $models.type "image") $models.subPath (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "models.subPath %s with models.type image needs Kubernetes 1.33, this is %s: put the models at the top of the image" $models.subPath .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{/* One kind of workers: {"root": ., "worker": a pool}. */}}
{{- define "remontoir.validate.worker" -}}
{{- $worker := .worker -}}
{{- $path := $worker.path -}}
{{- $kind := include "remontoir.workerKind" $worker -}}
{{- $name := printf "%s-worker%s-%d" (include "remontoir.fullname" .root) $worker.suffix (sub (int .root.Values.gateway.replicas) 1) -}}
{{- if gt (len $name) 52 -}}
{{- fail (printf "%s: its %s would be called %s, of %d characters; Kubernetes makes labels of 52: give a shorter name, or fullnameOverride" $path $kind $name (len $name)) -}}
{{- end -}}
{{- if and (eq $worker.cache.type "claim") (eq $kind "DaemonSet") -}}
{{- fail (printf "%s.cache.type is claim, which a DaemonSet has not: say hostPath (the node's own disk) or emptyDir, or %s.kind StatefulSet" $path $path) -}}
{{- end -}}
{{- /* A pool may have it from `worker`, which says it for another. */ -}}
{{- if and (eq $path "worker") (eq $kind "DaemonSet") (ne (int64 $worker.replicas) 1) -}}
{{- fail (printf "worker.replicas is %d, and a DaemonSet has a pod on each node that worker.gpu.nodeSelector and worker.nodeSelector name: say worker.kind StatefulSet for a number of pods, worker.gpusPerPod for the GPUs of one" (int64 $worker.replicas)) -}}
{{- end -}}
{{- $page := int64 (include "remontoir.pageMb" .root) -}}
{{- $cache := int64 ($worker.cacheMb | default (ternary 1024 0 (eq $worker.mode "cpu"))) -}}
{{- if and $cache (lt $cache $page) -}}
{{- fail (printf "%s.cacheMb is %d, less than one page of gateway.settings.page_mb %d" $path $cache $page) -}}
{{- end -}}
{{- if eq $worker.mode "cpu" -}}
{{- $limit := dig "limits" "memory" "" $worker.resources -}}
{{- if $limit -}}
{{- $mib := int64 (include "remontoir.mebibytes" (dict "is" $limit "path" (printf "%s.resources.limits.memory" $path))) -}}
{{- if le $mib $cache -}}
{{- fail (printf "%s.cacheMb is %d MiB, and %s.resources.limits.memory %v is %d MiB: in CPU mode the cache lies in the container's memory, beside at least as much for engines and tensors" $path $cache $path $limit $mib) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- if and $worker.gpu.memoryMb (gt $cache (int64 ($worker.gpu.memoryMb | default 0))) -}}
{{- fail (printf "%s.cacheMb is %d MiB, and %s.gpu.memoryMb says that a card has %d" $path $cache $path (int64 $worker.gpu.memoryMb)) -}}
{{- end -}}
{{- range $part := list "limits" "requests" -}}
{{- if hasKey (get $worker.resources $part | default dict) $worker.gpu.resourceName -}}
{{- fail (printf "%s.resources.%s has %s: say %s.gpusPerPod instead, from which request and limit are made" $path $part $worker.gpu.resourceName $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.gateway" -}}
{{- $gateway := .Values.gateway -}}
{{- if eq (int $gateway.port) (int $gateway.workerPort) -}}
{{- fail (printf "gateway.port and gateway.workerPort are both %d" (int $gateway.port)) -}}
{{- end -}}
{{- range $gateway.env -}}
{{- if hasPrefix "REMONTOIR_" .name -}}
{{- fail (printf "gateway.env has %s: settings are said in gateway.settings, where they are checked (%s)" .name (.name | trimPrefix "REMONTOIR_" | lower)) -}}
{{- end -}}
{{- end -}}
{{- $limit := dig "limits" "memory" "" $gateway.resources -}}
{{- $bodies := int64 ($gateway.settings.max_buffered_mb | default 1024) -}}
{{- if $limit -}}
{{- $mib := int64 (include "remontoir.mebibytes" (dict "is" $limit "path" "gateway.resources.limits.memory")) -}}
{{- if le $mib $bodies -}}
{{- fail (printf "gateway.settings.max_buffered_mb is %d MiB, and gateway.resources.limits.memory %v is %d MiB: bodies that are being served lie in it, beside all else" $bodies $limit $mib) -}}
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
{{- $slos := dict "gateway.settings.default_slo_ms" $slo -}}
{{- range $name, $tenant := .Values.auth.tenants -}}
{{- $_ := set $slos (printf "auth.tenants.%s.default_slo_ms" $name) (float64 ($tenant.default_slo_ms | default 0)) -}}
{{- end -}}
{{- range $name, $group := $gateway.groups -}}
{{- $_ := set $slos (printf "gateway.groups.%s.default_slo_ms" $name) (float64 ($group.default_slo_ms | default 0)) -}}
{{- end -}}
{{- range $path, $slo := $slos -}}
{{- if gt $slo (mulf $answer 1000.0) -}}
{{- fail (printf "%s is %v, longer than gateway.settings.answer_grace_s %v s: a gateway that stops would give such requests up" $path $slo $answer) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.scaling" -}}
{{- $auto := .Values.autoscaling -}}
{{- if and $auto.keda.enabled $auto.hpa.enabled -}}
{{- fail "autoscaling.keda.enabled and autoscaling.hpa.enabled are both true: two autoscalers would fight over the workers, choose one" -}}
{{- end -}}
{{- if and (include "remontoir.isAutoscaled" .) .Values.worker.pools -}}
{{- fail (printf "autoscaling and worker.pools (%d): the figures are of all workers of a gateway together, and say nothing of which kind there should be more" (len .Values.worker.pools)) -}}
{{- end -}}
{{- if and (include "remontoir.isAutoscaled" .) (eq (include "remontoir.workerKind" .Values.worker) "DaemonSet") -}}
{{- fail "autoscaling needs worker.kind StatefulSet: a DaemonSet has a worker on each node, and its size is that of the node group" -}}
{{- end -}}
{{- if gt (int64 $auto.minReplicas) (int64 $auto.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %d, above autoscaling.maxReplicas %d" (int64 $auto.minReplicas) (int64 $auto.maxReplicas)) -}}
{{- end -}}
{{- if and $auto.keda.enabled (not $auto.keda.prometheusAddress) -}}
{{- fail "autoscaling.keda.prometheusAddress is required: KEDA asks that Prometheus for the gateway's figures" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.worker.pools -}}
{{- if has .name $names -}}
{{- fail (printf "worker.pools has %s twice" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.routes" -}}
{{- $route := .Values.httpRoute -}}
{{- if and $route.enabled (not $route.parentRefs) -}}
{{- fail "httpRoute.parentRefs is required with httpRoute.enabled: the Gateway that the route belongs to" -}}
{{- end -}}
{{- if $route.owners -}}
{{- if not $route.enabled -}}
{{- fail "httpRoute.owners is given, and httpRoute.enabled is false" -}}
{{- end -}}
{{- $gateways := list -}}
{{- range until (int .Values.gateway.replicas) -}}
{{- $gateways = append $gateways (printf "%s-gateway-%d" (include "remontoir.fullname" $) .) -}}
{{- end -}}
{{- $of := dict -}}
{{- range $owner, $models := $route.owners -}}
{{- if not (has $owner $gateways) -}}
{{- fail (printf "httpRoute.owners has %s, and gateway.replicas %d makes %s" $owner (len $gateways) (join ", " $gateways)) -}}
{{- end -}}
{{- range $models -}}
{{- if hasKey $of . -}}
{{- fail (printf "httpRoute.owners has model %s of %s and of %s: a model has one owner" . (get $of .) $owner) -}}
{{- end -}}
{{- $_ := set $of . $owner -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Switches that would be on and do nothing, or harm. */}}
{{- define "remontoir.validate.switches" -}}
{{- $policy := .Values.networkPolicy -}}
{{- if $policy.enabled -}}
{{- range $side := list "gateway" "worker" -}}
{{- if and (eq $.Values.models.type "pull") (not (get $policy (printf "%sEgress" $side))) -}}
{{- fail (printf "networkPolicy.enabled and models.type pull: name the way to %s in networkPolicy.%sEgress, or no %s would get its models" ($.Values.models.pull.source | default "the models") $side $side) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.gateway.settings.otlp_endpoint (not $policy.gatewayEgress) -}}
{{- fail (printf "networkPolicy.enabled and gateway.settings.otlp_endpoint %s: name the way there in networkPolicy.gatewayEgress, or no trace would arrive" .Values.gateway.settings.otlp_endpoint) -}}
{{- end -}}
{{- end -}}
{{- if and $policy.enabled $policy.clients .Values.serviceMonitor.enabled (not $policy.monitoring) -}}
{{- fail "networkPolicy.monitoring is required with networkPolicy.clients and serviceMonitor.enabled: who Prometheus is, also where it is among the clients" -}}
{{- end -}}
{{- if and .Values.tests.json (not .Values.tests.model) -}}
{{- fail "tests.json needs tests.model: which model is to be asked it?" -}}
{{- end -}}
{{- $isOpen := or (not .Values.auth.enabled) .Values.gateway.settings.open_metrics -}}
{{- if and .Values.serviceMonitor.enabled (not $isOpen) (not (include "remontoir.monitoringKey" .)) -}}
{{- fail "serviceMonitor.apiKeySecret.name is required with tenants of your own: a Secret with a key of a tenant that has `metrics: true`; or gateway.settings.open_metrics true" -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.validate.keys" -}}
{{- $curve := .Values.curve -}}
{{- if and $curve.enabled (ne (empty $curve.existingGatewaySecret) (empty $curve.existingWorkerSecret)) -}}
{{- fail "curve.existingGatewaySecret and curve.existingWorkerSecret belong together: give both (`remontoir keys curve`), or neither, to have them made once" -}}
{{- end -}}
{{- if and (include "remontoir.makesCurveKeys" .) (ne (join "," $curve.workerNames) "worker") -}}
{{- fail (printf "curve.workerNames is %s, and the keys that are made are of one pair, worker: give curve.existingGatewaySecret and curve.existingWorkerSecret with yours (`remontoir keys curve`)" (join ", " $curve.workerNames)) -}}
{{- end -}}
{{- if and .Values.auth.existingTenantsSecret .Values.auth.tenants -}}
{{- fail "auth.existingTenantsSecret and auth.tenants are both given: one is enough" -}}
{{- end -}}
{{- if and .Values.auth.enabled .Values.auth.tenants -}}
{{- $keys := list -}}
{{- range .Values.auth.tenants -}}
{{- $keys = concat $keys (.keys | default list) -}}
{{- end -}}
{{- if not $keys -}}
{{- fail (printf "auth.tenants has %s, and none has a key: `remontoir keys api --tenant NAME` makes one" (keys .Values.auth.tenants | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- /* Only where there is a cluster to ask: `helm template` and --dry-run have none. */ -}}
{{- if lookup "v1" "Namespace" "" .Release.Namespace -}}
{{- if $curve.enabled -}}
{{- $ofGateway := list "gateway.key_secret" -}}
{{- range $curve.workerNames -}}
{{- $ofGateway = append $ofGateway (printf "%s.key" .) -}}
{{- end -}}
{{- include "remontoir.validate.secret" (list . "curve.existingGatewaySecret" $curve.existingGatewaySecret $ofGateway) -}}
{{- include "remontoir.validate.secret" (list . "curve.existingWorkerSecret" $curve.existingWorkerSecret (list "worker.key_secret" "gateway.key")) -}}
{{- end -}}
{{- if .Values.auth.enabled -}}
{{- include "remontoir.validate.secret" (list . "auth.existingTenantsSecret" .Values.auth.existingTenantsSecret (list "tenants.yaml")) -}}
{{- end -}}
{{- include "remontoir.validate.secret" (list . "gateway.tls.existingSecret" .Values.gateway.tls.existingSecret (list "tls.crt" "tls.key")) -}}
{{- with .Values.serviceMonitor.tls.caKey -}}
{{- include "remontoir.validate.secret" (list $ "serviceMonitor.tls.caKey (empty: an authority that everybody knows)" $.Values.gateway.tls.existingSecret (list .)) -}}
{{- end -}}
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
