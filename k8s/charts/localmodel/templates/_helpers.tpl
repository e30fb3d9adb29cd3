{{- define "localmodel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "localmodel.coordinator" -}}
{{- if .Values.kserveNames -}}kserve-localmodel-controller-manager{{- else -}}{{ include "localmodel.fullname" . }}-coordinator{{- end -}}
{{- end -}}

{{- define "localmodel.agent" -}}
{{- if .Values.kserveNames -}}kserve-localmodelnode-agent{{- else -}}{{ include "localmodel.fullname" . }}-agent{{- end -}}
{{- end -}}

{{- define "localmodel.rayAccount" -}}
{{- if .Values.kserveNames -}}kserve-localmodelnode-agent{{- else -}}{{ include "localmodel.fullname" . }}-ray{{- end -}}
{{- end -}}

{{- define "localmodel.headAddress" -}}
{{ include "localmodel.fullname" . }}-head-svc.{{ .Release.Namespace }}.svc:6379
{{- end -}}

{{- define "localmodel.coordinatorImage" -}}
{{ .Values.imagePrefix }}{{ .Values.coordinator.image }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "localmodel.rayImage" -}}
{{ .Values.imagePrefix }}{{ .Values.ray.image }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "localmodel.priorityClass" -}}
{{- if .Values.priorityClass.name -}}{{ .Values.priorityClass.name }}
{{- else if .Values.priorityClass.create -}}{{ include "localmodel.fullname" . }}
{{- end -}}
{{- end -}}

{{/* Of every object. */}}
{{- define "localmodel.labels" -}}
app.kubernetes.io/part-of: localmodel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "localmodel.kserveLabels" -}}
control-plane: {{ . }}
controller-tools.k8s.io: "1.0"
{{- end -}}

{{- define "localmodel.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "localmodel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "localmodel.rayTokenVolume" -}}
name: ray-token
secret:
  secretName: {{ include "localmodel.fullname" . }}
  defaultMode: 0400
  items:
  - key: auth_token
    path: auth_token
{{- end -}}

{{- define "localmodel.rayMounts" -}}
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
- name: ray-token
  mountPath: /var/run/localmodel/ray
  readOnly: true
{{- end -}}

{{- define "localmodel.rayProbe" -}}
livenessProbe:
  httpGet:
    path: /healthz
    port: ray-probes
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 5
{{- end -}}
