-- Health of a KVQuantRollout for Argo CD. In ConfigMap argocd-cm, under the key
-- resource.customizations.health.kvquant.dev_KVQuantRollout
local health = {status = "Progressing", message = "Waiting for the kvquant operator"}
local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local function is(name)
  return conditions[name] ~= nil and conditions[name].status == "True"
end
health.message = status.verdict or status.phase
if is("Ready") then
  health.status = "Healthy"
elseif is("Stalled") then
  health.status = "Degraded"
  health.message = conditions["Stalled"].message or health.message
elseif is("Killed") or is("Paused") then
  health.status = "Suspended"
end
return health
