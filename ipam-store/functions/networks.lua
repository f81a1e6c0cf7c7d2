-- The network, other than `name`, whose subnet overlaps first to last.
local function overlapping(root, family, name, first, last)
  local found = redis.call(
    'ZREVRANGEBYLEX', root .. ':subnets:' .. family, '[' .. last .. '-g', '-', 'LIMIT', 0, 2)
  for _, entry in ipairs(found) do
    local space = string.find(entry, ' ', 1, true)
    local other = string.sub(entry, space + 1)
    local _, other_last = bounds_of(string.sub(entry, 1, space - 1))
    if other ~= name then
      return other_last >= first and other or nil
    end
  end
  return nil
end

-- Finds a lease on an address that the new definition reserves for another workload: address, id, workload. Skips
-- reservations that existed before. Looks up each reservation, or walks the held addresses, whichever are fewer.
local function stranded_by_reservation(root, name, family, reserved)
  local held, known = pool_key(root, name, family, 'held'), pool_key(root, name, family, 'reserved')
  local found
  local function look(address, id, entry)
    local workload = string.sub(entry, #address + 2)
    local lease = not found and not redis.call('ZSCORE', known, entry) and lease_of(root, id)
    if lease == nil or lease and lease.workload ~= workload then
      found = { address, id, workload }
    end
  end
  if redis.call('ZCARD', held) > 2 * #reserved then
    for _, entry in ipairs(reserved) do
      local address = string.match(entry, '^%x+')
      local id = entry_of(held, address)
      if id then
        look(address, id, entry)
      end
    end
    return unpack(found or {})
  end
  local at = 1
  each_between(held, '0', 'g', function(address, id)
    while reserved[at] and string.sub(reserved[at], 1, #address) < address do
      at = at + 1
    end
    if reserved[at] and string.sub(reserved[at], 1, #address) == address then
      look(address, id, reserved[at])
    end
  end)
  return unpack(found or {})
end

-- Finds a lease of one family that the new rules forbid: address, id, and the path of the rule.
local function stranded_in(root, name, family, rules)
  local held = pool_key(root, name, family, 'held')
  if redis.call('EXISTS', held) == 0 then
    return nil
  end
  local digits_of_family = family == '4' and 8 or 32
  local all = { { string.rep('0', digits_of_family), string.rep('f', digits_of_family) } }
  local closed = minus(all, rules and { { rules.first, rules.last } } or {})
  for _, entry in ipairs(rules and rules.forbidden or {}) do
    local first, last, path = string.match(entry, '^(%x+)%-(%x+) (.*)$')
    table.insert(closed, { first, last, path })
  end
  for _, range in ipairs(closed) do
    local address, id = entry_between(held, range[1], range[2])
    if address then
      return address, id, range[3] or 'subnet'
    end
  end
  local address, id, workload = stranded_by_reservation(root, name, family, rules and rules.reserved or {})
  return address, id, address and 'reservations.' .. workload
end

local function stranded(root, ask, type_before)
  if type_before and type_before ~= ask.type then
    local ids = ids_in(root, ask.name, 1)
    if ids[1] then
      return refuse('NETWORK_IN_USE', 'the type cannot change while ' .. ids[1] .. ' has a lease',
        { id = ids[1], path = 'type' })
    end
  end
  for _, family in ipairs(FAMILIES) do
    local address, id, path = stranded_in(root, ask.name, family, ask.families[family])
    if address then
      path = (family == '6' and 'ipv6.' or '') .. path
      return refuse('NETWORK_IN_USE', path .. ' would strand the lease of ' .. id .. ' on {address}',
        { id = id, address = address, path = path })
    end
  end
  return nil
end

-- Changes a family of a network to its new rules; `rules` is nil if the network no longer has the family.
local function set_family(root, name, family, rules, now)
  local key = network_key(root, name)
  local text = redis.call('HGET', key, 'family:' .. family)
  local old = text and cjson.decode(text)
  local subnets = root .. ':subnets:' .. family
  if old then
    redis.call('ZREM', subnets, old.first .. '-' .. old.last .. ' ' .. name)
    keep_count(root, '#subnets:' .. family, subnets, -1)
    local kept = rules and { { rules.first, rules.last } } or {}
    for _, range in ipairs(minus({ { old.first, old.last } }, kept)) do
      while bury_some(root, name, family, range[1], range[2], now) == MAX_MOVED do
      end
    end
  end
  if not rules then
    set_allowed(root, name, family, {})
    redis.call('HDEL', key, 'family:' .. family)
    place_none(root, name, family)
    return
  end
  if redis.call('ZADD', subnets, 0, rules.first .. '-' .. rules.last .. ' ' .. name) == 1 then
    keep_count(root, '#subnets:' .. family, subnets, 1)
  end
  keep_leaving(root, name, family, rules.first, rules.last)
  store_rules(root, name, family, rules)
  set_allowed(root, name, family, rules.allowed, rules.at_once)
  if entry_between(root .. ':gone:' .. family, rules.first, rules.last) then
    redis.call('HSET', key, 'unfinished', 'sorting')
  end
end

-- The refusal of a definition that overlaps another network's subnet or strands a lease; nil for none.
local function obstacle_to(root, ask, type_before)
  for family, rules in pairs(ask.families) do
    local other = overlapping(root, family, ask.name, rules.first, rules.last)
    if other then
      local path = family == '6' and 'ipv6.subnet' or 'subnet'
      return refuse('NETWORK_CONFLICT', path .. ' overlaps that of network ' .. other,
        { network = other, path = path })
    end
  end
  return stranded(root, ask, type_before)
end

-- Builds the pool of a family again from its allowed ranges and its held and released addresses.
local function rebuild_pool(root, name, family, allowed)
  for _, part in ipairs({ 'allowed', 'fresh', 'free', 'by' }) do
    redis.call('DEL', pool_key(root, name, family, part))
  end
  redis.call('HDEL', network_key(root, name), 'next:' .. family)
  set_allowed(root, name, family, allowed)
end

-- True if a network without a definition is still listed, or addresses of it may be held.
local function has_remains(root, name)
  return redis.call('ZSCORE', root .. ':networks', name) or may_be_held(root, name)
end

-- Stores the parts of a definition that have fields of their own.
local function store_definition(root, ask)
  local key = network_key(root, ask.name)
  redis.call('HSET', key, 'network', ask.network, 'digest', ask.digest,
    'type', ask.type, 'delayMs', digits(ask.delayMs))
  if ask.fixed then
    redis.call('HSET', key, 'fixed', ask.fixed)
  else
    redis.call('HDEL', key, 'fixed')
  end
  if ask.reclaimMs then
    redis.call('HSET', key, 'reclaimMs', digits(ask.reclaimMs))
  else
    redis.call('HDEL', key, 'reclaimMs')
  end
  local bridges, bridge = memory_of(root).bridges, bridge_of(ask)
  if bridges and bridge then
    note_bridge(bridges, bridge, ask.name)
  end
end

local function store_network(root, ask, revision)
  local key = network_key(root, ask.name)
  local now = now_ms(root)
  if redis.call('HEXISTS', key, 'revision') == 0 and has_remains(root, ask.name) then
    for _, family in ipairs(FAMILIES) do
      rebuild_pool(root, ask.name, family, {})
    end
    redis.call('HSET', key, 'unchecked', '1')
  end
  for _, family in ipairs(FAMILIES) do
    set_family(root, ask.name, family, ask.families[family], now)
  end
  if redis.call('ZADD', root .. ':networks', 0, ask.name) == 1 then
    keep_count(root, '#networks', root .. ':networks', 1)
    begin_hosts(root, ask.name)
  end
  redis.call('HSET', key, 'revision', digits(revision))
  store_definition(root, ask)
  note_revised(root, ask.name, revision)
  append(root, ask.name, now, EDITED, digits(revision))
end

-- Removes a network that has no leases.
local function remove_network(root, name)
  begin_removal(root, name)
  while not finish_some(root, name) do
  end
end

-- A network whose deletion is unfinished and that has the name, or overlaps a subnet, of the network in `ask`.
local function deleting_for(root, ask)
  if is_deleting(root, ask.name) then
    return ask.name
  end
  for family, rules in pairs(ask.families) do
    local other = overlapping(root, family, ask.name, rules.first, rules.last)
    if other and is_deleting(root, other) then
      return other
    end
  end
  return nil
end

-- The refusal of any change while an index has lost entries: a lease or network in the way might be overlooked.
local function incomplete(root, name)
  -- Without the last revision, the next one would repeat an earlier one.
  if not tonumber(redis.call('HGET', root .. ':meta', 'revision') or nil) then
    return disarm(root)
  end
  for _, family in ipairs(FAMILIES) do
    if missing_from(root, '#subnets:' .. family, root .. ':subnets:' .. family) > 0 then
      return contradiction('IPv' .. family .. ' subnets of networks have vanished')
    end
    if missing_from(root, '#leaving:' .. family, leaving_key(root, family)) > 0 then
      return contradiction('IPv' .. family .. ' addresses that hosts have to let go of have vanished')
    end
    if missing_from(root, held_field(name, family), pool_key(root, name, family, 'held')) > 0 then
      return contradiction('held IPv' .. family .. ' addresses of network ' .. name .. ' have vanished')
    end
    -- Without all closed ranges, nobody knows which addresses the change opens and hosts have to let go of.
    local rules = decoded(redis.call('HGET', network_key(root, name), 'family:' .. family) or '')
    local closed = rules and tonumber(rules.closed)
    if closed and redis.call('ZCARD', pool_key(root, name, family, 'closed')) < closed then
      return contradiction('IPv' .. family .. ' addresses that network ' .. name .. ' never gives out have vanished')
    end
  end
  return nil
end

-- put {by?: {host, machineId}, name, type, revision?, network (JSON text), digest, plainDigest?, delayMs, reclaimMs?,
--      fixed?: JSON text (edits.lua),
--      families: {"4": {first, last, size, poolSize, flat: true, allowed: ["first-last"…],
--                 reserved: ["address workload"…], forbidden: ["first-last path"…]}, "6": …}}, [network]
-- The text of the network is an argument of its own, if it is not in the JSON. plainDigest: the digest without the
-- gateway mode, if the agent has added the mode because the operator did not give one.
-- -> {network?, revision, created, more}; network: the stored text, if it differs from that argument; more: the change
-- is unfinished
local function put_network(keys, args)
  local root = keys[1]
  local ask = flat_definition(cjson.decode(args[1]))
  ask.network = ask.network or args[2]
  local closed = unarmed(root) or ask.by and foreign(root, ask.by.host, who_of(ask.by))
  if closed then
    return reply_of(closed)
  end
  local key = network_key(root, ask.name)
  local vanished = incomplete(root, ask.name)
  if vanished then
    return reply_of(vanished)
  end
  local deleting = deleting_for(root, ask)
  if deleting and finish_some(root, deleting) then
    -- Each call works on one deletion only.
    deleting = deleting_for(root, ask)
  end
  if deleting then
    return reply_of(refuse_unfinished(deleting))
  end
  local held = redis.call('HMGET', key, 'revision', 'digest', 'network', 'type', 'fixed')
  local revision = tonumber(held[1])
  if revision and (held[2] == ask.digest or held[2] == ask.plainDigest) then
    if held[3] ~= ask.network and not (held[3] and decoded(held[3])) then
      redis.call('HSET', key, 'network', ask.network)
      held[3] = ask.network
    end
    return reply_of({
      network = held[3] ~= args[2] and held[3] or nil,
      revision = revision,
      created = false,
      more = not finish_some(root, ask.name),
    })
  end
  if revision and ask.revision ~= revision then
    return reply_of(refuse('NETWORK_CONFLICT',
      'network ' .. ask.name .. ' has other content, at revision ' .. revision,
      { network = ask.name, revision = revision }))
  end
  if not revision and ask.revision then
    return reply_of(refuse('UNKNOWN_NETWORK', 'there is no network ' .. ask.name .. ' to replace',
      { network = ask.name }))
  end
  local was = revision and { type = held[4], network = held[3] or '', fixed = held[5] or nil }
  local refusal = vanished_definition(root, ask.name) or obstacle_to(root, ask, held[4])
    or refuse_shared_bridge(root, ask, was)
    or revision and refuse_fixed(root, ask, was)
    or revision and refuse_supposed_mode(root, ask, held[3] or '')
  if refusal then
    return reply_of(refusal)
  end
  local next_revision = redis.call('HINCRBY', root .. ':meta', 'revision', 1)
  if revision then
    note_leaving(root, ask.name, ask.families, next_revision)
  end
  store_network(root, ask, next_revision)
  return reply_of({
    network = not args[2] and ask.network or nil,
    revision = next_revision,
    created = not revision,
    more = not finish_some(root, ask.name),
  })
end

-- Begins the deletion of a network, with this revision.
local function begin_deletion(root, name, revision)
  note_leaving(root, name, {}, revision)
  if not is_leaving(root, name) then
    forget_hosts(root, name)
  end
  begin_removal(root, name)
  note_revised(root, name, revision)
end

-- delete {by?: {host, machineId}, name} -> {deleted, more}; more: the network is gone, but some of its keys are left
local function delete_network(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local name = ask.name
  local closed = unarmed(root) or ask.by and foreign(root, ask.by.host, who_of(ask.by))
  if closed then
    return reply_of(closed)
  end
  local key = network_key(root, name)
  local vanished = incomplete(root, name)
  if vanished then
    return reply_of(vanished)
  end
  if is_deleting(root, name) then
    return reply_of({ deleted = true, more = not finish_some(root, name) })
  end
  vanished = vanished_definition(root, name)
  if vanished then
    return reply_of(vanished)
  end
  local ids = ids_in(root, name, 16)
  for _, family in ipairs(FAMILIES) do
    local _, id = entry_between(pool_key(root, name, family, 'held'), '0', 'g')
    if #ids == 0 and id then
      return reply_of(contradiction(id .. ' is said to hold an address of network ' .. name .. ', and by no host'))
    end
  end
  if #ids > 0 then
    return reply_of(refuse('NETWORK_IN_USE', 'network ' .. name .. ' has leases: ' .. table.concat(ids, ', '),
      { network = name, ids = ids }))
  end
  if redis.call('EXISTS', key) == 0 and not redis.call('ZSCORE', root .. ':networks', name) then
    return reply_of({ deleted = false, more = false })
  end
  begin_deletion(root, name, redis.call('HINCRBY', root .. ':meta', 'revision', 1))
  return reply_of({ deleted = true, more = not finish_some(root, name) })
end

redis.register_function('volt1_network_put', readable(put_network))
-- Allowed when Redis is out of memory: it frees some.
redis.register_function({
  function_name = 'volt1_network_delete',
  callback = readable(delete_network),
  flags = { 'allow-oom' },
})
