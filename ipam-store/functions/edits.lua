-- Keys of a definition that cannot change while the network has leases. With each put the agent sends them as `fixed`:
-- JSON of their values by path.

local function is_same_value(one, other)
  if type(one) ~= 'table' or type(other) ~= 'table' then
    return one == other
  end
  for key, value in pairs(one) do
    if not is_same_value(value, other[key]) then
      return false
    end
  end
  for key in pairs(other) do
    if one[key] == nil then
      return false
    end
  end
  return true
end

-- The value of a definition at a path; null if it has none there.
local function value_at(definition, path)
  local value = definition
  for key in string.gmatch(path, '[^.]+') do
    if type(value) ~= 'table' or value[key] == nil then
      return cjson.null
    end
    value = value[key]
  end
  return value
end

-- The values at these paths: from `fixed`, or from the definition if an agent before 1.7 has put it.
local function fixed_values(fixed, definition, paths)
  local values = fixed and decoded(fixed)
  if values then
    return values
  end
  local whole = decoded(definition)
  values = {}
  for path in pairs(whole and paths or {}) do
    values[path] = value_at(whole, path)
  end
  return values
end

local HAS_BRIDGE = { bridged = true, ['host-only'] = true }
local BRIDGE = { bridge = true }

-- The bridge that a network's hosts have for it, nil for a type without one. `kept`: type, `fixed` and definition.
local function bridge_of(kept)
  return HAS_BRIDGE[kept.type] and fixed_values(kept.fixed, kept.network, BRIDGE).bridge or nil
end

local function kept_bridge(root, name)
  local kept = redis.call('HMGET', network_key(root, name), 'type', 'fixed')
  local network = HAS_BRIDGE[kept[1]] and not kept[2] and redis.call('HGET', network_key(root, name), 'network')
  return bridge_of({ type = kept[1], fixed = kept[2] or nil, network = network or '' })
end

local function note_bridge(bridges, bridge, name)
  bridges[bridge] = bridges[bridge] or {}
  bridges[bridge][name] = true
end

-- Bridge -> the networks that have it. Read once from all networks, then extended by each definition that is stored. A
-- network that has changed its bridge, or was deleted, stays in it: callers have to check what they find.
local function bridges_of(root)
  local memory = memory_of(root)
  if not memory.bridges then
    memory.bridges = {}
    for _, name in ipairs(redis.call('ZRANGE', root .. ':networks', 0, -1)) do
      local bridge = kept_bridge(root, name)
      if bridge then
        note_bridge(memory.bridges, bridge, name)
      end
    end
  end
  return memory.bridges
end

-- The refusal of a put that wants the bridge of another network. A network may keep a bridge that it has: networks that
-- an earlier version has put may share one.
local function refuse_shared_bridge(root, ask, was)
  local bridge = bridge_of(ask)
  if not bridge or was and bridge_of(was) == bridge then
    return nil
  end
  for name in pairs(bridges_of(root)[bridge] or {}) do
    if name ~= ask.name and redis.call('ZSCORE', root .. ':networks', name) and kept_bridge(root, name) == bridge then
      return refuse('NETWORK_CONFLICT', 'bridge: network ' .. name .. ' has bridge ' .. bridge,
        { network = name, path = 'bridge', bridge = bridge })
    end
  end
  return nil
end

-- The first path, by name, at which a put differs from the present definition of a network.
local function fixed_path(was, ask)
  if was.fixed and was.fixed == ask.fixed then
    return nil
  end
  local paths = ask.fixed and decoded(ask.fixed) or was.fixed and decoded(was.fixed) or {}
  local before = fixed_values(was.fixed, was.network, paths)
  local after = fixed_values(ask.fixed, ask.network, paths)
  local differing = {}
  for path in pairs(paths) do
    -- An agent of another version may fix other paths: these are not compared.
    if before[path] ~= nil and after[path] ~= nil and not is_same_value(before[path], after[path]) then
      table.insert(differing, path)
    end
  end
  table.sort(differing)
  -- The operator did not give the mode: if another path differs, that one has to be named.
  local is_supposed = ask.plainDigest and differing[1] == 'gatewayMode'
  return is_supposed and differing[2] or differing[1]
end

-- The refusal to change a network whose definition has vanished, in whole or in part. Which addresses the change would
-- open is known only when the hosts have re-asserted the definition.
local function vanished_definition(root, name)
  if missing_from(root, '#networks', root .. ':networks') > 0 then
    return contradiction('names of networks have vanished')
  end
  local held = redis.call('HMGET', network_key(root, name), 'network', 'revision', 'family:4', 'family:6')
  if not held[2] and not redis.call('ZSCORE', root .. ':networks', name) then
    return nil
  end
  local definition = held[1] and decoded(held[1]) or nil
  local ipv6 = definition and type(definition.ipv6) == 'table' and definition.ipv6.subnet
  local is_whole = definition and tonumber(held[2] or nil) and (not definition.subnet or decoded(held[3] or ''))
    and (not ipv6 or decoded(held[4] or ''))
  return not is_whole and contradiction('the definition of network ' .. name .. ' has vanished') or nil
end

-- The refusal of a put that changes a path that cannot change while there are leases.
local function refuse_fixed(root, ask, was)
  local path = fixed_path(was, ask)
  local id = path and ids_in(root, ask.name, 1)[1]
  if not id then
    return nil
  end
  return refuse('NETWORK_IN_USE', path .. ' cannot change while network ' .. ask.name .. ' has leases, ' .. id
    .. ' for one', { network = ask.name, id = id, path = path })
end

-- The refusal of a put without the gateway mode, for a network with leases that an earlier version has put. In such a
-- network each host's bridge has the gateway's address: to suppose mode router would cut the attached workloads off
-- from it.
local function refuse_supposed_mode(root, ask, before)
  local was = ask.plainDigest and decoded(before)
  local id = was and was.gatewayMode == nil and ids_in(root, ask.name, 1)[1]
  if not id then
    return nil
  end
  return refuse('NETWORK_IN_USE', 'gatewayMode has to be said, router or anycast, while network ' .. ask.name
    .. ' has leases, ' .. id .. ' for one: hosts have the address of the gateway on their bridges',
    { network = ask.name, id = id, path = 'gatewayMode' })
end
