local MAX_DUE = 1000

-- heartbeat {host, machineId, bootId} -> {nowMs, due: [{id, generation}…]}: what of this host has expired
local function heartbeat(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local now = now_ms()
  redis.call('HSET', root .. ':hosts', ask.host, cjson.encode({
    host = ask.host,
    machineId = ask.machineId,
    bootId = ask.bootId,
    seenAtMs = digits(now),
  }))
  local ids = redis.call(
    'ZRANGEBYSCORE', root .. ':host:' .. ask.host .. ':due', '-inf', digits(now), 'LIMIT', 0, MAX_DUE)
  local due = {}
  for _, id in ipairs(ids) do
    table.insert(due, cjson.encode({ id = id, generation = lease_of(root, id).generation }))
  end
  return '{"nowMs":"' .. digits(now) .. '","due":' .. json_array(due) .. '}'
end

redis.register_function('volt1_heartbeat', heartbeat)
redis.register_function({
  function_name = 'volt1_version',
  callback = function()
    return VERSION
  end,
  flags = { 'no-writes' },
})
