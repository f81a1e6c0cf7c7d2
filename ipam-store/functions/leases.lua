-- What a repeated acquire finds: the lease, if it is of the same workload, network and addresses.
local function same_lease(lease, ask)
  if lease.workload ~= ask.workload or lease.network ~= ask.network then
    return false
  end
  if ask.mac and lease.mac ~= ask.mac then
    return false
  end
  for _, family in ipairs(ask.families) do
    if family.asked and lease.hex[family.family] ~= family.asked then
      return false
    end
  end
  return true
end

local function repeated(root, lease, ask, now)
  if lease.host ~= ask.host then
    return refuse('WRONG_HOST', ask.id .. ' is held by host ' .. lease.host, { host = lease.host })
  end
  if not same_lease(lease, ask) then
    return refuse('ALREADY_ATTACHED', ask.id .. ' has a lease of other content',
      { generation = tonumber(lease.generation) })
  end
  lease.bootId = ask.bootId
  if ask.ttlMs then
    lease.expiresAtMs = digits(now + ask.ttlMs)
    redis.call('ZADD', root .. ':host:' .. ask.host .. ':due', lease.expiresAtMs, ask.id)
  end
  redis.call('HSET', root .. ':leases', ask.id, cjson.encode(lease))
  return cjson.encode({ lease = lease, created = false })
end

-- One address of one family. Returns address, or nil and a refusal.
local function pick(root, ask, family, now, delay)
  local name, version = ask.network, family.family
  local held_key = family_key(root, name, version, 'held')
  if family.asked then
    local holder = redis.call('HGET', held_key, family.asked)
    if holder then
      return nil, refuse('ADDRESS_IN_USE', family.askedText .. ' is held by ' .. holder,
        { address = family.askedText, id = holder })
    end
    local at, workload = released_of(root, name, version, family.asked)
    if at and at + delay > now and workload ~= ask.workload then
      return nil, refuse('ADDRESS_IN_USE', family.askedText .. ' is cooling down',
        { address = family.askedText }, at + delay - now)
    end
    return family.asked
  end
  if family.reserved and redis.call('HEXISTS', held_key, family.reserved) == 0 then
    return family.reserved
  end
  local fresh = redis.call('ZRANGE', family_key(root, name, version, 'fresh'), 0, 0)
  if #fresh > 0 then
    local first = split_range(fresh[1])
    return first
  end
  local oldest = redis.call('ZRANGE', family_key(root, name, version, 'free'), 0, 0, 'WITHSCORES')
  if #oldest == 0 then
    return nil, refuse('POOL_EXHAUSTED', 'network ' .. name .. ' has no free IPv' .. version .. ' address',
      { network = name, family = tonumber(version) })
  end
  local wait = tonumber(oldest[2]) + delay - now
  if wait > 0 then
    return nil, refuse('POOL_EXHAUSTED',
      'network ' .. name .. ' has no IPv' .. version .. ' address that has cooled down',
      { network = name, family = tonumber(version) }, wait)
  end
  return oldest[1]
end

-- The asked-for MAC, or the first derived one that nobody in the network has.
local function pick_mac(root, ask)
  local key = root .. ':net:' .. ask.network .. ':macs'
  if ask.mac then
    local holder = redis.call('HGET', key, ask.mac)
    if holder then
      return nil, refuse('MAC_IN_USE', ask.mac .. ' is held by ' .. holder, { mac = ask.mac, id = holder })
    end
    return ask.mac
  end
  for _, mac in ipairs(ask.derivedMacs) do
    if redis.call('HEXISTS', key, mac) == 0 then
      return mac
    end
  end
  return nil, refuse('INTERNAL', 'every MAC derived for ' .. ask.id .. ' is taken')
end

-- Returns what the address was released as before, for a grant that comes to nothing.
local function take(root, network, version, address, id)
  local before = redis.call('HGET', family_key(root, network, version, 'released'), address)
  cut_fresh(family_key(root, network, version, 'fresh'), address)
  redis.call('ZREM', family_key(root, network, version, 'free'), address)
  redis.call('HDEL', family_key(root, network, version, 'released'), address)
  redis.call('HSET', family_key(root, network, version, 'held'), address, id)
  return before or nil
end

-- acquire {id, workload, kind, network, type, revision, host, bootId, mac?, derivedMacs, hostname?, ttlMs?,
--          families: [{family: "4", length, asked?, askedText?, reserved?}…]}
-- -> {lease, created}
local function acquire(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local now = now_ms()
  local held = lease_of(root, ask.id)
  if held then
    return repeated(root, held, ask, now)
  end
  local network = redis.call('HMGET', root .. ':net:' .. ask.network, 'revision', 'reuseDelayMs')
  if not network[1] then
    return refuse('UNKNOWN_NETWORK', 'there is no network ' .. ask.network)
  end
  if tonumber(network[1]) ~= ask.revision then
    return refuse('REVISION_CHANGED', 'network ' .. ask.network .. ' is at revision ' .. network[1])
  end
  local mac, refusal = pick_mac(root, ask)
  if not mac then
    return refusal
  end
  local hex = {}
  local lengths = {}
  for _, family in ipairs(ask.families) do
    local address
    address, refusal = pick(root, ask, family, now, tonumber(network[2]))
    if not address then
      return refusal
    end
    hex[family.family] = address
    lengths[family.family] = family.length
  end
  local before = {}
  for version, address in pairs(hex) do
    before[version] = take(root, ask.network, version, address, ask.id)
  end
  local lease = {
    id = ask.id,
    generation = next_generation(root),
    network = ask.network,
    type = ask.type,
    workload = ask.workload,
    kind = ask.kind,
    host = ask.host,
    bootId = ask.bootId,
    hostname = ask.hostname,
    mac = mac,
    hex = hex,
    lengths = lengths,
    before = before,
    grantedAtMs = digits(now),
    expiresAtMs = ask.ttlMs and digits(now + ask.ttlMs) or nil,
  }
  redis.call('HSET', root .. ':net:' .. ask.network .. ':macs', mac, ask.id)
  redis.call('HSET', root .. ':leases', ask.id, cjson.encode(lease))
  redis.call('ZADD', root .. ':ids', 0, ask.id)
  redis.call('ZADD', root .. ':net:' .. ask.network .. ':ids', 0, ask.id)
  redis.call('ZADD', root .. ':host:' .. ask.host .. ':ids', 0, ask.id)
  if lease.expiresAtMs then
    redis.call('ZADD', root .. ':host:' .. ask.host .. ':due', lease.expiresAtMs, ask.id)
  end
  return cjson.encode({ lease = lease, created = true })
end

-- A lease that no workload ever used leaves its addresses as they were before.
local function give_back(root, lease, now, cool)
  for version, address in pairs(lease.hex) do
    local text = lease.before[version] or ('0 ' .. lease.workload)
    if cool then
      text = digits(now) .. ' ' .. lease.workload
    end
    local at = string.match(text, '^%d+')
    redis.call('HDEL', family_key(root, lease.network, version, 'held'), address)
    redis.call('HSET', family_key(root, lease.network, version, 'released'), address, text)
    if range_around(family_key(root, lease.network, version, 'allowed'), address) then
      redis.call('ZADD', family_key(root, lease.network, version, 'free'), at, address)
    end
  end
end

-- release {id, generation (text), host, cool} -> {released}
local function release(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local lease = lease_of(root, ask.id)
  if not lease then
    return cjson.encode({ released = false })
  end
  if lease.host ~= ask.host then
    return refuse('WRONG_HOST', ask.id .. ' is held by host ' .. lease.host, { host = lease.host })
  end
  if lease.generation ~= ask.generation then
    return refuse('STALE_GENERATION', ask.id .. ' has generation ' .. lease.generation,
      { generation = tonumber(lease.generation) })
  end
  give_back(root, lease, now_ms(), ask.cool)
  redis.call('HDEL', root .. ':net:' .. lease.network .. ':macs', lease.mac)
  redis.call('HDEL', root .. ':leases', ask.id)
  redis.call('ZREM', root .. ':ids', ask.id)
  redis.call('ZREM', root .. ':net:' .. lease.network .. ':ids', ask.id)
  redis.call('ZREM', root .. ':host:' .. lease.host .. ':ids', ask.id)
  redis.call('ZREM', root .. ':host:' .. lease.host .. ':due', ask.id)
  return cjson.encode({ released = true })
end

-- lease {id} -> the lease or null
local function get(keys, args)
  return redis.call('HGET', keys[1] .. ':leases', cjson.decode(args[1]).id) or 'null'
end

-- leases {network?, host?, cursor?, limit} -> {leases, cursor?}, by id
local function list(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local key = root .. ':ids'
  if ask.host then
    key = root .. ':host:' .. ask.host .. ':ids'
  elseif ask.network then
    key = root .. ':net:' .. ask.network .. ':ids'
  end
  local names, cursor = page_of(key, ask.cursor, ask.limit)
  local leases = {}
  for _, id in ipairs(names) do
    local lease = redis.call('HGET', root .. ':leases', id)
    if not ask.network or cjson.decode(lease).network == ask.network then
      table.insert(leases, lease)
    end
  end
  local rest = cursor and (',"cursor":' .. cjson.encode(cursor)) or ''
  return '{"leases":' .. json_array(leases) .. rest .. '}'
end

redis.register_function('volt1_acquire', acquire)
redis.register_function('volt1_release', release)
redis.register_function('volt1_lease', get)
redis.register_function('volt1_leases', list)
