{{/* Names, labels and what several templates need; each ends at a `define`. */}}

{{- define "remontoir.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "remontoir.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "remontoir.labels" -}}
{{ include "remontoir.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Images: a tag or, better, a digest. */}}
{{- define "remontoir.image" -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest -}}@{{ .Values.image.digest }}{{- else -}}:{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- end -}}

{{- define "remontoir.workerImage" -}}
{{- if eq .worker.mode "cpu" -}}
{{- include "remontoir.image" .root -}}
{{- else -}}
{{- $image := .worker.image -}}
{{- $image.repository | default (printf "%s-gpu" .root.Values.image.repository) -}}
{{- if $image.digest -}}@{{ $image.digest }}{{- else -}}:{{ $image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Of one pool. */}}
{{- define "remontoir.workerKind" -}}
{{- if eq .kind "auto" -}}
{{- ternary "StatefulSet" "DaemonSet" (eq .mode "cpu") -}}
{{- else -}}
{{- .kind -}}
{{- end -}}
{{- end -}}

{{/*
All kinds of workers, as JSON: {"pools": [...]}. Each is `worker` with what its pool says otherwise put over it, where
it is in the values ("path"), and what its objects' names have more ("suffix"). Without `worker.pools` it is the one.
*/}}
{{- define "remontoir.pools" -}}
{{- $base := omit .Values.worker "pools" -}}
{{- $pools := list -}}
{{- range $index, $own := .Values.worker.pools -}}
{{- $pool := mergeOverwrite (deepCopy $base) (deepCopy $own) -}}
{{- $pools = append $pools (merge (dict "suffix" (printf "-%s" $own.name) "path" (printf "worker.pools[%d] (%s)" $index $own.name)) $pool) -}}
{{- end -}}
{{- dict "pools" ($pools | default (list (merge (dict "suffix" "" "path" "worker" "name" "") $base))) | toJson -}}
{{- end -}}

{{/* Which workers these are: of a pool, for a gateway. */}}
{{- define "remontoir.workerLabels" -}}
{{- $worker := index . 0 -}}
app.kubernetes.io/component: worker
remontoir/shard: {{ index . 1 | quote }}
{{- with $worker.name }}
remontoir/pool: {{ . }}
{{- end }}
{{- end -}}

{{/* Whether something else sets the number of workers. */}}
{{- define "remontoir.isAutoscaled" -}}
{{- if or .Values.autoscaling.keda.enabled .Values.autoscaling.hpa.enabled }}true{{ end -}}
{{- end -}}

{{- define "remontoir.pageMb" -}}
{{- .Values.gateway.settings.page_mb | default 16 -}}
{{- end -}}

{{/* All gateways, as each of them and their workers are told it; nothing where there is one. */}}
{{- define "remontoir.replicas" -}}
{{- $name := include "remontoir.fullname" . -}}
{{- $scheme := ternary "https" "http" (not (empty .Values.gateway.tls.existingSecret)) -}}
{{- $all := list -}}
{{- if gt (int .Values.gateway.replicas) 1 -}}
{{- range $i := until (int .Values.gateway.replicas) -}}
{{- $host := printf "%s-gateway-%d.%s-gateways.%s.svc" $name $i $name $.Release.Namespace -}}
{{- $all = append $all (printf "%s-gateway-%d=%s://%s:%d" $name $i $scheme $host (int $.Values.gateway.port)) -}}
{{- end -}}
{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{/* Whether workers must know the groups: those of several gateways, as models of a group are together. */}}
{{- define "remontoir.workersReadGroups" -}}
{{- if and (gt (int .Values.gateway.replicas) 1) .Values.gateway.groups }}true{{ end -}}
{{- end -}}

{{/*
Secrets: given, or made once by the keys job. `auth.tenants` has another name than what the job makes, which is nobody's
release and stays: helm would refuse to take it over, and the job to make keys beside it.
*/}}
{{- define "remontoir.curveGatewaySecret" -}}
{{- .Values.curve.existingGatewaySecret | default (printf "%s-curve-gateway" (include "remontoir.fullname" .)) -}}
{{- end -}}
{{- define "remontoir.curveWorkerSecret" -}}
{{- .Values.curve.existingWorkerSecret | default (printf "%s-curve-worker" (include "remontoir.fullname" .)) -}}
{{- end -}}
{{- define "remontoir.tenantsSecret" -}}
{{- $own := printf "%s-%s" (include "remontoir.fullname" .) (ternary "own-tenants" "tenants" (not (empty .Values.auth.tenants))) -}}
{{- .Values.auth.existingTenantsSecret | default $own -}}
{{- end -}}
{{- define "remontoir.apiKeysSecret" -}}
{{- printf "%s-api-keys" (include "remontoir.fullname" .) -}}
{{- end -}}
{{- define "remontoir.makesCurveKeys" -}}
{{- if and .Values.curve.enabled (not .Values.curve.existingGatewaySecret) (not .Values.curve.existingWorkerSecret) }}true{{ end -}}
{{- end -}}
{{- define "remontoir.makesApiKeys" -}}
{{- if and .Values.auth.enabled (not .Values.auth.existingTenantsSecret) (not .Values.auth.tenants) }}true{{ end -}}
{{- end -}}

{{/* Prometheus' name for all gateways of this release: of this namespace, and with "remontoir" in it. */}}
{{- define "remontoir.job" -}}
{{- $job := printf "%s.%s" .Release.Namespace (include "remontoir.fullname" .) -}}
{{- ternary $job (printf "remontoir.%s" $job) (contains "remontoir" $job) | trunc 63 | trimAll ".-" -}}
{{- end -}}

{{/* With which key `helm test` asks, and Prometheus: "name key" of a Secret, or nothing. */}}
{{- define "remontoir.clientKey" -}}
{{- if .Values.tests.apiKeySecret.name -}}
{{ .Values.tests.apiKeySecret.name }} {{ .Values.tests.apiKeySecret.key }}
{{- else if include "remontoir.makesApiKeys" . -}}
{{ include "remontoir.apiKeysSecret" . }} client.key
{{- end -}}
{{- end -}}
{{- define "remontoir.monitoringKey" -}}
{{- if .Values.serviceMonitor.apiKeySecret.name -}}
{{ .Values.serviceMonitor.apiKeySecret.name }} {{ .Values.serviceMonitor.apiKeySecret.key }}
{{- else if include "remontoir.makesApiKeys" . -}}
{{ include "remontoir.apiKeysSecret" . }} monitoring.key
{{- end -}}
{{- end -}}

{{/* Seconds from SIGTERM to the end, at the most, as docs/http.md has them, and preStop before. */}}
{{- define "remontoir.stopSeconds" -}}
{{- $settings := .Values.gateway.settings -}}
{{- $drain := ternary $settings.drain_s 5 (hasKey $settings "drain_s") -}}
{{- $answer := ternary $settings.answer_grace_s 20 (hasKey $settings "answer_grace_s") -}}
{{- add .Values.gateway.preStopSeconds (ceil $drain) (ceil $answer) 1 5 5 -}}
{{- end -}}

{{/* MiB of a quantity of memory ("4Gi", "512M", 1073741824), rounded down: {"is": the quantity, "path": whose it is}. */}}
{{- define "remontoir.mebibytes" -}}
{{- $text := ternary (toString .is) (toString (int64 .is)) (kindIs "string" .is) -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $bytes := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- if not (and $number (hasKey $bytes $unit)) -}}
{{- fail (printf "%s is %q, which is no quantity of memory like 4Gi or 512M" .path $text) -}}
{{- end -}}
{{- divf (mulf (float64 $number) (get $bytes $unit)) 1048576.0 | floor | int64 -}}
{{- end -}}

{{/* The models' volume, and the container that fills it where they are pulled. */}}
{{- define "remontoir.modelsVolume" -}}
{{- $models := .Values.models -}}
- name: models
  {{- if eq $models.type "existingClaim" }}
  persistentVolumeClaim:
    claimName: {{ $models.existingClaim.name }}
    readOnly: true
  {{- else if eq $models.type "hostPath" }}
  hostPath:
    path: {{ $models.hostPath.path }}
    type: Directory
  {{- else if eq $models.type "image" }}
  image:
    reference: {{ $models.image.reference }}
    pullPolicy: {{ $models.image.pullPolicy }}
  {{- else }}
  emptyDir:
    {{- if $models.pull.sizeLimit }}
    sizeLimit: {{ $models.pull.sizeLimit | quote }}
    {{- else }} {}
    {{- end }}
  {{- end }}
{{- end -}}

{{- define "remontoir.modelsMount" -}}
- name: models
  mountPath: /models
  readOnly: true
  {{- with .Values.models.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end -}}

{{- define "remontoir.pullContainer" -}}
{{- $pull := .Values.models.pull -}}
- name: pull-models
  image: {{ $pull.image | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- with $pull.command }}
  command: {{- toYaml . | nindent 4 }}
  {{- end }}
  args:
    {{- if $pull.args }}
    {{- toYaml $pull.args | nindent 4 }}
    {{- else }}
    - copy
    - --checksum
    - --retries=5
    - {{ $pull.source | quote }}
    - /models
    {{- end }}
  env:
    - {name: HOME, value: /tmp}
    {{- with $pull.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $pull.existingSecret }}
  envFrom:
    - secretRef: {name: {{ . | quote }}}
  {{- end }}
  resources: {{- toYaml $pull.resources | nindent 4 }}
  securityContext: {{- include "remontoir.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "remontoir.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "remontoir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Of the whole cluster, and so with the namespace: the same release may be in two. */}}
{{- define "remontoir.priorityClass" -}}
{{- printf "%s-%s" .Release.Namespace (include "remontoir.fullname" .) -}}
{{- end -}}

{{/* A topology spread of one component, where it is asked for. */}}
{{- define "remontoir.topologySpread" -}}
{{- $spread := .spread -}}
{{- if $spread.enabled }}
topologySpreadConstraints:
  - maxSkew: {{ $spread.maxSkew }}
    topologyKey: {{ $spread.topologyKey }}
    whenUnsatisfiable: {{ $spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "remontoir.selectorLabels" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end -}}

{{/* What both kinds of pods take from their values: where they run, and beside what. */}}
{{- define "remontoir.placement" -}}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $class := .values.priorityClassName }}
{{- if and (not $class) .root.Values.priorityClass.create }}
{{- $class = include "remontoir.priorityClass" .root }}
{{- end }}
{{- with $class }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
