local MAX_DUE = 500

-- heartbeat {host, machineId, bootId, liveMs} -> {nowMs (text), due: [{id, generation (text)}…]}: the leases of
-- this host that have expired. Costs the same whatever the host holds. A session of another machine is live
-- for liveMs after its last heartbeat.
local function heartbeat(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local now = now_ms()
  local session = root .. ':host:' .. ask.host
  local machine = redis.call('HGET', session, 'machineId')
  local seen = tonumber(redis.call('ZSCORE', root .. ':hosts', ask.host) or 0)
  if machine and machine ~= ask.machineId and seen + ask.liveMs > now then
    return reply_of(refuse('HOST_CONFLICT',
      'another machine, ' .. machine .. ', calls itself host ' .. ask.host,
      { host = ask.host, machineId = machine }))
  end
  redis.call('HSET', session, 'machineId', ask.machineId, 'bootId', ask.bootId)
  redis.call('ZADD', root .. ':hosts', digits(now), ask.host)
  local due = {}
  local ids = redis.call('ZRANGEBYSCORE', session .. ':due', '-inf', digits(now), 'LIMIT', 0, MAX_DUE)
  for index, id in ipairs(ids) do
    due[index] = cjson.encode({ id = id, generation = lease_of(root, id).generation })
  end
  return '{"nowMs":"' .. digits(now) .. '","due":' .. json_list(due) .. '}'
end

redis.register_function({
  function_name = 'volt1_heartbeat',
  callback = heartbeat,
  flags = { 'allow-oom' },
})
redis.register_function({
  function_name = 'volt1_version',
  callback = function()
    return VERSION
  end,
  flags = { 'no-writes' },
})
