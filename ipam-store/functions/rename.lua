-- Gives a host another id: in its leases, and in the list of hosts. Its agent does not run meanwhile.

-- Enters the host under its new id in the lists in which it has its old id. It has to re-assert. Other hosts know it
-- only by the old id, so a live host is a newcomer.
local function enter_as(root, host, to, ask, known)
  redis.call('ZADD', root .. ':roster', '0', to)
  local since = redis.call('ZSCORE', root .. ':suspects', host)
  if since then
    redis.call('ZADD', root .. ':suspects', since, to)
  end
  local deadline = redis.call('ZSCORE', root .. ':hosts', host)
  if deadline and redis.call('ZADD', root .. ':hosts', deadline, to) == 1 then
    redis.call('ZADD', root .. ':joining', digits(note_change(root, to, true)), to)
    if not memory_of(root).generation then
      await(memory_of(root), to)
    end
  end
  local session = root .. ':host:' .. to
  redis.call('HSET', session, 'machineId', ask.machineId, 'agentId', ask.agentId,
    'seenMs', digits(known.seenMs or 0))
  for _, field in ipairs({ 'bootId', 'bootIds' }) do
    if known[field] then
      redis.call('HSET', session, field, known[field])
    end
  end
  redis.call('HSET', session, 'applied', digits(applied_by(root, host)))
  -- The networks of which the host has something, also only a bridge.
  for _, names in ipairs({ 'networks', 'revised' }) do
    for _, network in ipairs(redis.call('ZRANGE', root .. ':' .. names, 0, -1)) do
      local applied = redis.call('ZSCORE', hosts_key(root, network), host)
      if applied then
        enter_network(root, to, network, tonumber(applied))
        -- A forgotten host that had the new id before may have applied more.
        redis.call('ZADD', hosts_key(root, network), 'XX', 'LT', applied, to)
      end
    end
  end
end

-- Why a host cannot be renamed; nil if it can.
local function refuse_rename(root, ask, known, other)
  if known.clones then
    return refuse('HOST_CONFLICT', 'two machines call themselves host ' .. ask.host .. ': settle that first',
      { host = ask.host, machineId = known.machineId })
  end
  local silent = now_ms(root) - (known.seenMs or 0)
  if silent < ask.suspectMs then
    return refuse('HOST_ALIVE', 'host ' .. ask.host .. ' was heard ' .. digits(silent) .. ' ms ago',
      { host = ask.host }, ask.suspectMs - silent)
  end
  if ask.to == ask.host or other.machineId == ask.machineId and other.agentId == ask.agentId then
    return nil
  end
  if other.machineId or redis.call('ZSCORE', root .. ':roster', ask.to)
    or redis.call('ZCARD', ids_key(root, ask.to)) > 0 then
    return refuse('HOST_CONFLICT', 'there is a host ' .. ask.to .. ' already: forget it if that machine is gone',
      { host = ask.to, machineId = other.machineId })
  end
  return nil
end

-- rename {host, to, wasMachineId, machineId, agentId, suspectMs} -> {known, moved, more}: the host is `to` from now on,
-- on the machine machineId. Its leases move, MAX_ENDED in a call. `to` may be the host's own id, if only the machine id
-- has changed. A repeat goes on where the call before ended. known is also false for a host of another machine or
-- agent, which has nothing of the sender. HOST_ALIVE if it was heard within suspectMs, HOST_CONFLICT if `to` is taken.
local function rename_host(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local host, to = ask.host, ask.to
  local known, other = known_of(root, host), known_of(root, to)
  local is_its_own = known.machineId == ask.wasMachineId and (not known.agentId or known.agentId == ask.agentId)
  if not is_its_own then
    return '{"known":false,"moved":0,"more":false}'
  end
  local refusal = refuse_rename(root, ask, known, other)
  if refusal then
    return reply_of(refusal)
  end
  if to == host then
    redis.call('HSET', root .. ':host:' .. host, 'machineId', ask.machineId, 'agentId', ask.agentId)
    ask_again(root, host)
    return '{"known":true,"moved":0,"more":false}'
  end
  if not other.machineId then
    enter_as(root, host, to, ask, known)
  end
  local entries = redis.call('ZRANGE', ids_key(root, host), 0, MAX_ENDED - 1)
  for _, entry in ipairs(entries) do
    move_lease(root, host, to, entry)
  end
  local more = redis.call('ZCARD', ids_key(root, host)) > 0
  if not more then
    strike(root, host)
    give_free_what_is_let_go(root)
  end
  return '{"known":true,"moved":' .. #entries .. ',"more":' .. tostring(more) .. '}'
end

redis.register_function({ function_name = 'volt1_rename', callback = readable(rename_host), flags = { 'allow-oom' } })
