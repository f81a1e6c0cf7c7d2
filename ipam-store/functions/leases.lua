local function due_key(root, host)
  return root .. ':host:' .. host .. ':due'
end

local function store_lease(root, id, host, json, expires_at)
  redis.call('HSET', root .. ':leases', id, json)
  if expires_at then
    redis.call('ZADD', due_key(root, host), expires_at, id)
  end
  return nil, json
end

-- True when a lease is what a repeated request asks for.
local function is_same(lease, ask, asked)
  if lease.workload ~= asked.workload or lease.kind ~= asked.kind or lease.network ~= asked.network then
    return false
  end
  if ask.mac_asked and lease.mac ~= asked.mac then
    return false
  end
  for _, family in ipairs(ask.families) do
    if family.asked and lease.hex[family.name] ~= family.asked then
      return false
    end
  end
  return true
end

-- Writes also when nothing is new, so that a WAIT that follows covers the lease.
local function renew(root, ask, text)
  local lease = cjson.decode(text)
  local asked = cjson.decode(ask.head .. '}')
  if lease.host ~= ask.host then
    return refuse('WRONG_HOST', ask.id .. ' is held by host ' .. lease.host, { host = lease.host })
  end
  if not is_same(lease, ask, asked) then
    return refuse('ALREADY_ATTACHED', ask.id .. ' has a lease of other content',
      { id = ask.id, generation = lease.generation })
  end
  lease.bootId = asked.bootId
  lease.hostname = asked.hostname
  if ask.ttl_ms then
    lease.expiresAtMs = digits(ask.now + ask.ttl_ms)
  end
  return store_lease(root, ask.id, ask.host, cjson.encode(lease), lease.expiresAtMs)
end

-- An address that is to be this one and no other.
local function pick_named(root, ask, family, address)
  local id = entry_of(pool_key(root, ask.network, family, 'held'), address)
  if id then
    return refuse('ADDRESS_IN_USE', '{address} is held by ' .. id, { address = address, id = id })
  end
  local text = entry_of(pool_key(root, ask.network, family, 'last'), address)
  if text then
    local at, workload = time_and_workload(text)
    local rest = at + ask.delay_ms - ask.now
    if rest > 0 and workload ~= ask.workload then
      return refuse('ADDRESS_IN_USE', '{address} is cooling down', { address = address }, rest)
    end
  end
  return nil, address
end

-- An address of the pool that this workload released, all others being held or cooling.
local function pick_own(root, ask, family)
  local from, to = '[' .. ask.workload .. ' ', '(' .. ask.workload .. '!'
  local by = pool_key(root, ask.network, family, 'by')
  for _, entry in ipairs(redis.call('ZRANGEBYLEX', by, from, to, 'LIMIT', 0, 16)) do
    local address = string.sub(entry, #ask.workload + 2)
    if redis.call('ZSCORE', pool_key(root, ask.network, family, 'free'), address) then
      return address
    end
  end
  return nil
end

-- The least recently used address that has cooled down.
local function pick_used(root, ask, family)
  local oldest = redis.call('ZRANGE', pool_key(root, ask.network, family, 'free'), 0, 0, 'WITHSCORES')
  local wait = oldest[1] and tonumber(oldest[2]) + ask.delay_ms - ask.now
  if wait and wait <= 0 then
    return nil, oldest[1]
  end
  local own = wait and pick_own(root, ask, family)
  if own then
    return nil, own
  end
  return refuse('POOL_EXHAUSTED',
    'network ' .. ask.network .. ' has no IPv' .. family .. ' address left'
      .. (wait and ' that has cooled down' or ''),
    { network = ask.network, family = tonumber(family) }, wait or nil)
end

-- Answers a refusal, or nil and the address; or neither: the first one of `next`.
local function pick(root, ask, family, next_range)
  local held = pool_key(root, ask.network, family.name, 'held')
  if family.asked then
    return pick_named(root, ask, family.name, family.asked)
  end
  -- Only the workload itself can hold what is reserved for it: then this is its second attachment.
  if family.reserved and not entry_of(held, family.reserved) then
    return pick_named(root, ask, family.name, family.reserved)
  end
  if next_range then
    return nil
  end
  return pick_used(root, ask, family.name)
end

local function grant(root, ask)
  local network = redis.call(
    'HMGET', network_key(root, ask.network), 'revision', 'delayMs', 'next:4', 'next:6')
  if not network[1] then
    return refuse('UNKNOWN_NETWORK', 'there is no network ' .. ask.network, { network = ask.network })
  end
  if network[1] ~= ask.revision then
    return refuse('REVISION_CHANGED', 'network ' .. ask.network .. ' is at revision ' .. network[1])
  end
  ask.delay_ms = tonumber(network[2])
  local next_ranges = { ['4'] = network[3], ['6'] = network[4] }
  local picked = {}
  for index, family in ipairs(ask.families) do
    local refusal, address = pick(root, ask, family, next_ranges[family.name])
    if refusal then
      return refusal
    end
    picked[index] = address or bounds_of(next_ranges[family.name])
    family.is_next = not address
  end
  -- The last check, and the first write: nothing of it where the MAC is taken.
  local macs = network_key(root, ask.network) .. ':macs'
  if redis.call('HSETNX', macs, ask.mac, ask.id) == 0 then
    local holder = redis.call('HGET', macs, ask.mac)
    return refuse('MAC_IN_USE', ask.mac .. ' is held by ' .. holder,
      { mac = ask.mac, id = holder, network = ask.network })
  end
  local hex, before = {}, {}
  for index, family in ipairs(ask.families) do
    local name, address = family.name, picked[index]
    table.insert(hex, '"' .. name .. '":"' .. address .. '"')
    if family.is_next then
      take_next(root, ask.network, name, next_ranges[name], ask.id)
    else
      local text = take(root, ask.network, name, address, ask.id)
      if text then
        table.insert(before, '"' .. name .. '":"' .. text .. '"')
      end
    end
  end
  redis.call('ZADD', root .. ':ids', 0, ask.network .. ' ' .. ask.id)
  redis.call('ZADD', root .. ':host:' .. ask.host .. ':ids', 0, ask.network .. ' ' .. ask.id)
  local expires_at = ask.ttl_ms and digits(ask.now + ask.ttl_ms)
  local json = ask.head
    .. ',"generation":"' .. next_generation(root)
    .. '","grantedAtMs":"' .. digits(ask.now)
    .. (expires_at and '","expiresAtMs":"' .. expires_at or '')
    .. '","hex":{' .. table.concat(hex, ',')
    .. '},"before":{' .. table.concat(before, ',') .. '}}'
  return store_lease(root, ask.id, ask.host, json, expires_at)
end

-- acquire: ARGV id, host, workload, network, revision, mac, mac_asked (1 or 0), ttl_ms (or empty), head, and for
-- each family of the network: its name, the address asked for (or empty), the address reserved (or empty).
-- head is the lease as it will be stored, JSON without its closing brace: {"id", "workload", "kind", "network",
-- "host", "bootId", "hostname"?, "mac", "lengths": {"4": 24}. -> {lease, created}
local function acquire(keys, args)
  local root = keys[1]
  local ask = {
    id = args[1],
    host = args[2],
    workload = args[3],
    network = args[4],
    revision = args[5],
    mac = args[6],
    mac_asked = args[7] == '1',
    ttl_ms = tonumber(args[8]),
    head = args[9],
    now = now_ms(),
    families = {},
  }
  for index = 10, #args, 3 do
    table.insert(ask.families, {
      name = args[index],
      asked = args[index + 1] ~= '' and args[index + 1] or nil,
      reserved = args[index + 2] ~= '' and args[index + 2] or nil,
    })
  end
  local held = redis.call('HGET', root .. ':leases', ask.id)
  local refusal, lease
  if held then
    refusal, lease = renew(root, ask, held)
  else
    refusal, lease = grant(root, ask)
  end
  if refusal then
    return reply_of(refusal)
  end
  return '{"lease":' .. lease .. ',"created":' .. (held and 'false' or 'true') .. '}'
end

local function end_lease(root, lease, now, cool)
  for family, address in pairs(lease.hex) do
    local text = lease.before[family]
    if cool then
      text = digits(now) .. ' ' .. lease.workload
    end
    give_back(root, lease.network, family, address, lease.id, text)
  end
  local entry = lease.network .. ' ' .. lease.id
  redis.call('HDEL', network_key(root, lease.network) .. ':macs', lease.mac)
  redis.call('HDEL', root .. ':leases', lease.id)
  redis.call('ZREM', root .. ':ids', entry)
  redis.call('ZREM', root .. ':host:' .. lease.host .. ':ids', entry)
  redis.call('ZREM', due_key(root, lease.host), lease.id)
end

-- release {id, generation (text), host, cool} -> {released}
local function release(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local lease = lease_of(root, ask.id)
  if not lease then
    return reply_of({ released = false })
  end
  if lease.host ~= ask.host then
    return reply_of(refuse('WRONG_HOST', ask.id .. ' is held by host ' .. lease.host, { host = lease.host }))
  end
  if lease.generation ~= ask.generation then
    return reply_of(refuse('STALE_GENERATION',
      ask.id .. ' has generation ' .. lease.generation .. ', not ' .. ask.generation,
      { id = ask.id, generation = lease.generation }))
  end
  end_lease(root, lease, now_ms(), ask.cool)
  return reply_of({ released = true })
end

-- lease {id} -> the lease or null
local function get_lease(keys, args)
  return redis.call('HGET', keys[1] .. ':leases', cjson.decode(args[1]).id) or 'null'
end

-- leases {network?, host?, cursor?, limit} -> {leases, cursor?}, by network and id
local function list_leases(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local key = ask.host and root .. ':host:' .. ask.host .. ':ids' or root .. ':ids'
  local prefix = ask.network and ask.network .. ' ' or ''
  local leases, cursor = page_of(key, prefix, ask, function(entry)
    local space = string.find(entry, ' ', 1, true)
    return redis.call('HGET', root .. ':leases', string.sub(entry, space + 1))
  end)
  return '{"leases":' .. leases .. ',"cursor":' .. cursor .. '}'
end

redis.register_function('volt1_acquire', acquire)
-- Allowed when memory has run out: it gives some back.
redis.register_function({ function_name = 'volt1_release', callback = release, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'volt1_lease', callback = get_lease, flags = { 'no-writes' } })
redis.register_function({ function_name = 'volt1_leases', callback = list_leases, flags = { 'no-writes' } })
