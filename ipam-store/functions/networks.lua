local function overlap(a, b)
  for _, one in ipairs(a) do
    for _, other in ipairs(b) do
      if #one[1] == #other[1] and one[1] <= other[2] and other[1] <= one[2] then
        return true
      end
    end
  end
  return false
end

-- Why a lease could not go on under the new definition; nil when it can.
local function stranded(lease, put)
  if lease.type ~= put.type then
    return 'type'
  end
  for family, address in pairs(lease.hex) do
    local rules = put.families[family]
    if not rules or address < rules.first or address > rules.last then
      return 'subnet'
    end
    for _, range in ipairs(rules.forbidden) do
      if address >= range[1] and address <= range[2] then
        return 'gateway or exclude'
      end
    end
    local owner = rules.reserved[address]
    if owner and owner ~= lease.workload then
      return 'reservations'
    end
  end
  return nil
end

-- Fresh ranges and the order of the free ones, anew: what is allowed, less what is held or was.
local function rebuild_pool(root, network, family, allowed)
  local held = redis.call('HKEYS', family_key(root, network, family, 'held'))
  local released = redis.call('HGETALL', family_key(root, network, family, 'released'))
  local keys = {
    allowed = family_key(root, network, family, 'allowed'),
    fresh = family_key(root, network, family, 'fresh'),
    free = family_key(root, network, family, 'free'),
  }
  redis.call('DEL', keys.allowed, keys.fresh, keys.free)
  for _, range in ipairs(allowed) do
    redis.call('ZADD', keys.allowed, 0, range[1] .. '-' .. range[2])
    redis.call('ZADD', keys.fresh, 0, range[1] .. '-' .. range[2])
  end
  for _, address in ipairs(held) do
    cut_fresh(keys.fresh, address)
  end
  for index = 1, #released, 2 do
    local address = released[index]
    cut_fresh(keys.fresh, address)
    if range_around(keys.allowed, address) then
      redis.call('ZADD', keys.free, string.match(released[index + 1], '^%d+'), address)
    end
  end
end

local function usage_of(root, network, record)
  local usage = {}
  for family, size in pairs(record.sizes) do
    local held = redis.call('HLEN', family_key(root, network, family, 'held'))
    local delay = tonumber(redis.call('HGET', root .. ':net:' .. network, 'reuseDelayMs'))
    local cooling = redis.call(
      'ZCOUNT', family_key(root, network, family, 'free'), '(' .. digits(now_ms() - delay), '+inf')
    local reserved = 0
    for _, address in ipairs(record.reserved[family]) do
      if redis.call('HEXISTS', family_key(root, network, family, 'held'), address) == 0 then
        reserved = reserved + 1
      end
    end
    usage[family] = { size = size, used = held, cooling = cooling, reserved = reserved }
  end
  return usage
end

-- put {name, type, revision?, network (JSON text), subnets, reuseDelayMs, sizes, reserved,
--      families: {"4": {first, last, forbidden, reserved, allowed}, "6": …}}
-- -> {network, revision, created}
local function put(keys, args)
  local root = keys[1]
  local put_ = cjson.decode(args[1])
  local held = redis.call('HGET', root .. ':networks', put_.name)
  local current = held and cjson.decode(held) or nil
  if current and current.network == put_.network then
    return cjson.encode({ network = current.network, revision = current.revision, created = false })
  end
  if current and put_.revision ~= current.revision then
    return refuse('NETWORK_CONFLICT',
      'network ' .. put_.name .. ' exists with other content at revision ' .. current.revision,
      { network = put_.name, revision = current.revision })
  end
  if not current and put_.revision then
    return refuse('UNKNOWN_NETWORK', 'there is no network ' .. put_.name .. ' to replace')
  end
  local all = redis.call('HGETALL', root .. ':networks')
  for index = 1, #all, 2 do
    local other = cjson.decode(all[index + 1])
    if all[index] ~= put_.name and overlap(put_.subnets, other.subnets) then
      return refuse('NETWORK_CONFLICT',
        'subnet of ' .. put_.name .. ' overlaps that of network ' .. all[index],
        { path = 'subnet', network = all[index] })
    end
  end
  for _, id in ipairs(redis.call('ZRANGE', root .. ':net:' .. put_.name .. ':ids', 0, -1)) do
    local why = stranded(lease_of(root, id), put_)
    if why then
      return refuse('NETWORK_IN_USE', 'lease of ' .. id .. ' would be stranded by ' .. why,
        { id = id, path = why })
    end
  end
  local revision = next_counter(root, 'revisions')
  redis.call('HSET', root .. ':networks', put_.name, cjson.encode({
    revision = revision,
    network = put_.network,
    subnets = put_.subnets,
    sizes = put_.sizes,
    reserved = put_.reserved,
  }))
  redis.call('HSET', root .. ':net:' .. put_.name,
    'revision', revision, 'reuseDelayMs', put_.reuseDelayMs, 'type', put_.type)
  for _, family in ipairs({ '4', '6' }) do
    local rules = put_.families[family]
    redis.call('PERSIST', family_key(root, put_.name, family, 'released'))
    rebuild_pool(root, put_.name, family, rules and rules.allowed or {})
  end
  return cjson.encode({ network = put_.network, revision = revision, created = current == nil })
end

-- get {name} -> {network, revision, usage: {"4": {size, used, cooling, reserved}, …}} or null
local function get(keys, args)
  local root = keys[1]
  local name = cjson.decode(args[1]).name
  local held = redis.call('HGET', root .. ':networks', name)
  if not held then
    return 'null'
  end
  local record = cjson.decode(held)
  return cjson.encode({
    network = record.network,
    revision = record.revision,
    usage = usage_of(root, name, record),
  })
end

-- list {} -> {networks: [{network, revision}…]}, by name
local function list(keys, _)
  local all = redis.call('HGETALL', keys[1] .. ':networks')
  local names = {}
  local records = {}
  for index = 1, #all, 2 do
    table.insert(names, all[index])
    records[all[index]] = all[index + 1]
  end
  table.sort(names)
  local networks = {}
  for _, name in ipairs(names) do
    local record = cjson.decode(records[name])
    table.insert(networks,
      cjson.encode({ network = record.network, revision = record.revision }))
  end
  return '{"networks":' .. json_array(networks) .. '}'
end

-- delete {name} -> {deleted}
local function delete(keys, args)
  local root = keys[1]
  local name = cjson.decode(args[1]).name
  local ids = redis.call('ZRANGE', root .. ':net:' .. name .. ':ids', 0, 15)
  if #ids > 0 then
    return refuse('NETWORK_IN_USE', 'network ' .. name .. ' has leases: ' .. table.concat(ids, ', '),
      { network = name, ids = ids })
  end
  local delay = redis.call('HGET', root .. ':net:' .. name, 'reuseDelayMs')
  if not delay then
    return cjson.encode({ deleted = false })
  end
  redis.call('HDEL', root .. ':networks', name)
  redis.call('DEL', root .. ':net:' .. name, root .. ':net:' .. name .. ':macs')
  for _, family in ipairs({ '4', '6' }) do
    for _, part in ipairs({ 'allowed', 'fresh', 'held', 'free' }) do
      redis.call('DEL', family_key(root, name, family, part))
    end
    -- A network made anew under this name must not give out what is still cooling down.
    redis.call('PEXPIRE', family_key(root, name, family, 'released'), delay)
  end
  return cjson.encode({ deleted = true })
end

redis.register_function('volt1_network_put', put)
redis.register_function('volt1_network_get', get)
redis.register_function('volt1_network_list', list)
redis.register_function('volt1_network_delete', delete)
