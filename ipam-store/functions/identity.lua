-- Whose a host is: two machines under one name are told apart.

-- Whose a host is. A server that has lost who it was, and knows from other hosts that it was there, believes the
-- machine that was refused for another one: it must not be the quicker of the two.
local function machine_of(root, ask, known)
  if known or not ask.yieldsTo then
    return known
  end
  return redis.call('ZSCORE', root .. ':roster', ask.host) and ask.yieldsTo
end

-- Another machine may have the name when the first is silent and holds nothing.
local function conflict_with(root, ask, machine, now)
  if not machine or machine == ask.machineId then
    return nil
  end
  local deadline = redis.call('ZSCORE', root .. ':hosts', ask.host)
  local live = deadline and (tonumber(deadline) > now or not memory_of(root).generation)
  local holds = redis.call('ZCARD', ids_key(root, ask.host))
  if not live and holds == 0 then
    return nil
  end
  return refuse('HOST_CONFLICT',
    'another machine, ' .. machine .. ', ' .. (live and 'calls itself' or 'holds ' .. holds .. ' leases as')
      .. ' host ' .. ask.host .. (live and '' or ': forget the host if that machine is gone'),
    { host = ask.host, machineId = machine })
end
