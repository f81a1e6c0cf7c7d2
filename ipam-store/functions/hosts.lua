-- The functions by which an operator lists and forgets hosts.

-- forget {host} -> {known, released, networks: [networks of the released leases…], more}: ends the host's leases,
-- MAX_ENDED in a call; when none is left, the ledger forgets the host. HOST_ALIVE for a live host.
local function forget_host(keys, args)
  local root = keys[1]
  local host = cjson.decode(args[1]).host
  local session = root .. ':host:' .. host
  local memory = memory_of(root)
  local now = now_ms(root)
  local deadline = redis.call('ZSCORE', root .. ':hosts', host)
  if not memory.generation and memory.heard[host]
    or memory.generation and deadline and tonumber(deadline) > now then
    return reply_of(refuse('HOST_ALIVE', 'host ' .. host .. ' is alive: stop its agent first', { host = host }))
  end
  if not redis.call('ZSCORE', root .. ':roster', host) then
    return '{"known":false,"released":0,"networks":[],"more":false}'
  end
  redis.call('HDEL', session, 'asserted')
  local released, networks = 0, {}
  for _, entry in ipairs(redis.call('ZRANGE', ids_key(root, host), 0, MAX_ENDED - 1)) do
    local lease = lease_at(root, host, entry)
    if lease then
      end_lease(root, lease, now, true)
      released = released + 1
      networks[lease.network] = cjson.encode(lease.network)
    else
      redis.call('ZREM', ids_key(root, host), entry)
    end
  end
  local more = redis.call('ZCARD', ids_key(root, host)) > 0
  if not more then
    strike(root, host)
    give_free_what_is_let_go(root)
  end
  local names = {}
  for _, name in pairs(networks) do
    table.insert(names, name)
  end
  return '{"known":true,"released":' .. released .. ',"networks":' .. json_list(names) .. ',"more":' .. tostring(more) .. '}'
end

-- hosts {cursor?, limit} -> {hosts: [{host, state, machineId?, agentId?, bootId?, clones?, seenMs? (text), leases}…],
-- cursor?, state}, by name. clones: boots of the machines that call themselves the host. A host is live, joining,
-- suspect, or awaited: not heard yet, while the ledger is not armed.
local function list_hosts(keys, args)
  local root = keys[1]
  local memory = memory_of(root)
  local meta = meta_of(root)
  local hosts, cursor = page_of(root .. ':roster', '', cjson.decode(args[1]), function(host)
    local session = root .. ':host:' .. host
    local held = redis.call('HMGET', session, 'machineId', 'bootId', 'seenMs', 'asserted', 'agentId', 'clones')
    local state = 'live'
    if redis.call('ZSCORE', root .. ':suspects', host) then
      state = 'suspect'
    elseif not memory.generation
      and (not memory.heard[host] or meta.lost and held[4] ~= digits(epoch_of(meta.generation))) then
      state = 'awaited'
    elseif redis.call('ZSCORE', root .. ':joining', host) then
      state = 'joining'
    end
    return cjson.encode({
      host = host,
      state = state,
      machineId = held[1] or nil,
      bootId = held[2] or nil,
      seenMs = held[3] or nil,
      agentId = held[5] or nil,
      clones = held[6] and words_in(held[6]) or nil,
      leases = redis.call('ZCARD', ids_key(root, host)),
    })
  end)
  local state = memory.generation and 'armed' or meta.lost and 'recovering'
    or meta.generation == 0 and 'unclaimed' or 'arming'
  return '{"hosts":' .. hosts .. ',"cursor":' .. cursor .. ',"state":"' .. state .. '"}'
end

local VERSION = '1.8'

redis.register_function({ function_name = 'volt1_forget', callback = readable(forget_host), flags = { 'allow-oom' } })
redis.register_function({ function_name = 'volt1_hosts', callback = readable(list_hosts), flags = { 'no-writes' } })
redis.register_function({
  function_name = 'volt1_version',
  callback = function()
    return VERSION
  end,
  flags = { 'no-writes' },
})
