-- The functions that answer networks and their usage.

-- Looking up one entry costs this many times as much as reading one entry of a list.
local FEWER = 2

-- How many leases of a network suspect hosts hold. Walks the hosts of the network or the suspects, whichever are fewer.
local function suspect_in(root, name)
  local count, suspects, hosts = 0, root .. ':suspects', hosts_key(root, name)
  local walks_its_own = knows_hosts(root, name) and redis.call('ZCARD', hosts) < redis.call('ZCARD', suspects)
  for _, host in ipairs(redis.call('ZRANGE', walks_its_own and hosts or suspects, 0, -1)) do
    if not walks_its_own or redis.call('ZSCORE', suspects, host) then
      count = count + redis.call('ZLEXCOUNT', ids_key(root, host), '[' .. name .. ' ', '(' .. name .. '!')
    end
  end
  return count
end

-- How many reserved addresses nobody holds. Looks up each entry of the shorter list, or reads both if they are alike.
local function unheld(root, name, family, rules)
  local reserved, held = pool_key(root, name, family, 'reserved'), pool_key(root, name, family, 'held')
  local count, held_count = redis.call('ZCARD', reserved), redis.call('ZCARD', held)
  if not rules.closed then
    count = #rules.reserved
    for _, address in ipairs(rules.reserved) do
      count = entry_of(held, address) and count - 1 or count
    end
    return count
  end
  if held_count * FEWER < count then
    each_between(held, '0', 'g', function(address)
      count = entry_of(reserved, address) and count - 1 or count
    end)
    return count
  end
  local asked, taken = held_count > count * FEWER, {}
  if not asked then
    each_between(held, '0', 'g', function(address)
      taken[address] = true
    end)
  end
  each_between(reserved, '0', 'g', function(address)
    local is_taken = taken[address] or asked and entry_of(held, address)
    count = is_taken and count - 1 or count
  end)
  return count
end

-- The usage of one family. An allowed address is held, fresh, or released: only the fresh ranges have to be walked.
local function usage_of(root, name, family, rules, delay)
  local held = pool_key(root, name, family, 'held')
  local free = pool_key(root, name, family, 'free')
  local unused = redis.call('ZCARD', free)
  local fresh = redis.call('ZRANGE', pool_key(root, name, family, 'fresh'), 0, -1)
  fresh[#fresh + 1] = redis.call('HGET', network_key(root, name), 'next:' .. family) or nil
  for _, range in ipairs(fresh) do
    local first, last = bounds_of(range)
    unused = unused + (first == last and 1 or size_of(first, last))
  end
  local cooling = redis.call('ZCOUNT', free, '(' .. digits(now_ms(root) - delay), '+inf')
  return {
    size = rules.size,
    used = redis.call('ZCARD', held),
    free = unused - cooling,
    reserved = unheld(root, name, family, rules),
    cooling = cooling,
  }
end

-- get {name} -> {network, revision, suspect, usage: {"4": {size, used, free, reserved, cooling}, "6": …}} or null
local function get_network(keys, args)
  local root = keys[1]
  local name = cjson.decode(args[1]).name
  local held = redis.call(
    'HMGET', network_key(root, name), 'network', 'revision', 'delayMs', 'family:4', 'family:6')
  if not held[1] or not decoded(held[1]) or not tonumber(held[2]) then
    -- An emptied server must not answer that there is no such network.
    local closed = unarmed(root)
    if not closed and redis.call('ZSCORE', root .. ':networks', name) then
      closed = contradiction('the definition of network ' .. name .. ' has vanished')
    end
    return closed and reply_of(closed) or 'null'
  end
  local usage = {}
  for index, family in ipairs(FAMILIES) do
    if held[3 + index] then
      usage[family] = usage_of(root, name, family, cjson.decode(held[3 + index]), tonumber(held[3]))
    end
  end
  return reply_of({
    network = held[1],
    revision = tonumber(held[2]),
    suspect = suspect_in(root, name),
    usage = usage,
  })
end

-- list {cursor?, limit} -> {networks: [{network, revision}…], cursor?}, by name
local function list_networks(keys, args)
  local root = keys[1]
  -- A host that takes an incomplete list for the whole forgets the missing network, and cannot restore it.
  if missing_from(root, '#networks', root .. ':networks') > 0 then
    return reply_of(contradiction('names of networks have vanished'))
  end
  local vanished
  local networks, cursor = page_of(root .. ':networks', '', cjson.decode(args[1]), function(name)
    local held = redis.call('HMGET', network_key(root, name), 'network', 'revision')
    if not held[1] or not tonumber(held[2]) or not decoded(held[1]) then
      vanished = name
      return ''
    end
    return cjson.encode({ network = held[1], revision = tonumber(held[2]) })
  end)
  if vanished then
    return reply_of(contradiction('the definition of network ' .. vanished .. ' has vanished'))
  end
  return '{"networks":' .. networks .. ',"cursor":' .. cursor .. '}'
end

redis.register_function({
  function_name = 'volt1_network_get',
  callback = readable(get_network),
  flags = { 'no-writes' },
})
redis.register_function({
  function_name = 'volt1_network_list',
  callback = readable(list_networks),
  flags = { 'no-writes' },
})
