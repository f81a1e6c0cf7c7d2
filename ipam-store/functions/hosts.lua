-- Hosts: who lives, who is suspect, and when the ledger may grant.
local MAX_DUE = 500
local MAX_NAMED = 64
local SWEEP_MS = 1000
local MAX_SWEPT = 16
local MAX_ENDED = 100

-- The list of hosts has changed. Until the ledger is armed no counter grows by itself, or it would hide that a host
-- has seen more: arming is one change of the list, whatever came before it.
local function next_roster(root)
  return redis.call('HINCRBY', root .. ':meta', 'roster', memory_of(root).generation and 1 or 0)
end

local function make_suspect(root, host, now)
  redis.call('ZREM', root .. ':hosts', host)
  redis.call('ZREM', root .. ':joining', host)
  redis.call('ZADD', root .. ':suspects', digits(now), host)
  memory_of(root).sessions[host] = nil
end

-- What a reporter has seen is more than this server has: it has lost something. Begins the recovery, or widens
-- it. The host list is the reporter's where that is the newer one: those it names are awaited.
local function take_for_lost(root, seen, meta, now, wait_ms)
  local memory = memory_of(root)
  if memory.generation then
    memories[root] = nil
    memory = memory_of(root)
  end
  memory.since = now
  local began = not meta.lost
  if began or seen.generation > meta.generation then
    meta.generation = (epoch_of(math.max(seen.generation, meta.generation)) + 1) * EPOCH_UNIT
  end
  meta.lost = true
  meta.revision = math.max(meta.revision, seen.revision)
  local newer = seen.roster > meta.roster
  meta.roster = math.max(meta.roster, seen.roster)
  local named = {}
  for _, host in ipairs(seen.hosts) do
    named[host] = true
    local unknown = redis.call('ZADD', root .. ':roster', '0', host) == 1
    if unknown or newer then
      redis.call('ZREM', root .. ':suspects', host)
      redis.call('ZADD', root .. ':hosts', 'NX', digits(now + wait_ms), host)
    end
  end
  for _, host in ipairs(newer and redis.call('ZRANGE', root .. ':hosts', 0, -1) or {}) do
    if not named[host] and not memory.heard[host] then
      make_suspect(root, host, now)
    end
  end
  redis.call('HSET', root .. ':leases', GENERATION, digits(meta.generation))
  redis.call('HSET', root .. ':meta', 'revision', digits(meta.revision), 'roster', digits(meta.roster),
    'lost', '1')
  return began
end

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

-- Notes that a host lives. Answers what it was: live, suspect, or nil for unknown.
local function enter(root, ask, now)
  local session = root .. ':host:' .. ask.host
  local before = redis.call('ZSCORE', root .. ':hosts', ask.host) and 'live'
  if not before then
    local vouched = redis.call('ZCARD', root .. ':hosts') == 0
    before = redis.call('ZREM', root .. ':suspects', ask.host) == 1 and 'suspect' or nil
    local roster = next_roster(root)
    redis.call('ZADD', root .. ':roster', '0', ask.host)
    if not vouched then
      redis.call('ZADD', root .. ':joining', digits(roster), ask.host)
    end
  end
  if redis.call('HGET', session, 'machineId') ~= ask.machineId then
    redis.call('HDEL', session, 'asserted')
  end
  redis.call('HSET', session, 'machineId', ask.machineId, 'bootId', ask.bootId, 'seenMs', digits(now))
  redis.call('ZADD', root .. ':hosts', digits(now + ask.suspectMs), ask.host)
  return before
end

-- A host that others have seen in a list will be awaited by them, should this server be emptied. So it may be
-- granted leases when one that is no newcomer has seen it, or when all are newcomers. Only of an armed ledger are
-- the numbers of lists its own.
local function vouch(root, ask)
  local joining = root .. ':joining'
  if not redis.call('ZSCORE', joining, ask.host) then
    redis.call('ZREMRANGEBYSCORE', joining, '-inf', digits(ask.seen.roster))
  elseif redis.call('ZCARD', joining) == redis.call('ZCARD', root .. ':hosts') then
    redis.call('ZREM', joining, ask.host)
  end
end

-- Arms when no host is missing, or the operator's window is over: then those missing become suspect. Answers
-- who is missing, or nil.
local function try_to_arm(root, meta, now, window_ms)
  local memory = memory_of(root)
  local epoch = digits(epoch_of(meta.generation))
  local missing = {}
  local hosts = redis.call('ZRANGE', root .. ':hosts', 0, -1)
  for _, host in ipairs(hosts) do
    local session = root .. ':host:' .. host
    if not memory.heard[host] or meta.lost and redis.call('HGET', session, 'asserted') ~= epoch then
      table.insert(missing, host)
    end
  end
  if #missing > 0 and not (window_ms and now >= memory.since + window_ms) then
    return missing
  end
  for _, host in ipairs(missing) do
    make_suspect(root, host, now)
  end
  redis.call('HDEL', root .. ':meta', 'lost')
  memory.generation = meta.generation
  local roster = next_roster(root)
  for _, host in ipairs(redis.call('ZRANGE', root .. ':joining', 0, -1)) do
    redis.call('ZADD', root .. ':joining', digits(roster), host)
  end
  memory.said = {}
  for host, machine in pairs(memory.heard) do
    open_session(root, host, machine, epoch)
  end
  return nil, missing
end

-- Gives back leases that a suspect host holds in networks with reclaimAfterSeconds, `most` of them.
local function reclaim(root, host, since, now, most)
  local reclaimed = {}
  local ids = ids_key(root, host)
  local from = '-'
  while #reclaimed < most do
    local entry = redis.call('ZRANGEBYLEX', ids, from, '+', 'LIMIT', '0', '1')[1]
    if not entry then
      break
    end
    local space = string.find(entry, ' ', 1, true)
    local network = string.sub(entry, 1, space - 1)
    local after = redis.call('HGET', network_key(root, network), 'reclaimMs')
    if after and since + tonumber(after) <= now then
      local lease = lease_at(root, host, entry)
      if lease then
        end_lease(root, lease, now, true)
        redis.call('HDEL', root .. ':host:' .. host, 'asserted')
        table.insert(reclaimed, lease)
      else
        -- Leads to no lease of this host: for the audit to name.
        from = '(' .. entry
      end
    else
      -- Beyond the last entry of this network.
      from = '[' .. network .. '!'
    end
  end
  return reclaimed
end

-- Hosts that have fallen silent become suspect; what may be reclaimed of suspects is. A little at a time.
local function sweep(root, now)
  local memory = memory_of(root)
  local fallen, reclaimed = {}, {}
  if now < memory.swept + SWEEP_MS or now < memory.grace then
    return fallen, reclaimed
  end
  memory.swept = now
  local silent = redis.call(
    'ZRANGEBYSCORE', root .. ':hosts', '-inf', '(' .. digits(now), 'LIMIT', 0, MAX_SWEPT)
  for _, host in ipairs(silent) do
    make_suspect(root, host, now)
    next_roster(root)
    table.insert(fallen, host)
  end
  local suspects = redis.call(
    'ZRANGE', root .. ':suspects', memory.turn, memory.turn + MAX_SWEPT - 1, 'WITHSCORES')
  memory.turn = #suspects == 2 * MAX_SWEPT and memory.turn + MAX_SWEPT or 0
  for index = 1, #suspects, 2 do
    local since = tonumber(suspects[index + 1])
    for _, lease in ipairs(reclaim(root, suspects[index], since, now, MAX_ENDED - #reclaimed)) do
      table.insert(reclaimed, lease)
    end
  end
  return fallen, reclaimed
end

-- While nobody was heard, or this server was not there, nobody's silence counts.
local function note_beat(root, now, suspect_ms)
  local memory = memory_of(root)
  if not memory.beat or now - memory.beat > suspect_ms / 2 then
    memory.grace = now + suspect_ms
  end
  memory.beat = now
  memory.since = memory.since or now
end

local function due_of(root, host, now)
  local due = {}
  local ids = redis.call('ZRANGEBYSCORE', due_key(root, host), '-inf', digits(now), 'LIMIT', 0, MAX_DUE)
  for _, id in ipairs(ids) do
    local lease = lease_of(root, id)
    if lease then
      table.insert(due, cjson.encode({ id = id, generation = lease.generation }))
    end
  end
  return due
end

local function encoded(list, most)
  local items = {}
  for index = 1, math.min(#list, most or #list) do
    items[index] = cjson.encode(list[index])
  end
  return json_list(items)
end

-- heartbeat {host, machineId, yieldsTo?, bootId, suspectMs, windowMs?, newFleet,
--            seen: {generation (text), revision, roster, hosts: [host…]}}
-- -> {nowMs (text), state, mayAcquire, reassert, epoch (text), before?, rebooted, began, ended, awaiting: [host…],
--     missed: [host…], fallen: [host…], reclaimed: [lease…], due: [{id, generation (text)}…],
--     seen: {generation (text), revision, roster, hosts?: [host…]}}
-- yieldsTo: the machine for which the one that asks was refused last.
-- state is armed, arming, recovering or unclaimed. before: what the host was, live or suspect. began, ended:
-- this call has begun, or ended, a recovery; missed: whom that did not wait for. fallen: whom this call has made
-- suspect. hosts: of an armed ledger, where the roster is not the one that the reporter has seen. Costs the same
-- whatever the host holds.
local function heartbeat(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local now = now_ms()
  local seen = ask.seen
  seen.generation = tonumber(seen.generation)
  local session = root .. ':host:' .. ask.host
  local known = redis.call('HMGET', session, 'machineId', 'bootId')
  local conflict = conflict_with(root, ask, machine_of(root, ask, known[1]), now)
  if conflict then
    return reply_of(conflict)
  end
  local meta = meta_of(root)
  local memory = memory_of(root)
  if memory.generation and memory.generation ~= meta.generation then
    memories[root] = nil
  end
  local began = false
  if seen.generation > meta.generation or seen.revision > meta.revision or seen.roster > meta.roster then
    began = take_for_lost(root, seen, meta, now, ask.suspectMs)
  elseif meta.generation == 0 then
    if not ask.newFleet then
      return '{"nowMs":"' .. digits(now) .. '","state":"unclaimed"}'
    end
    meta.generation = EPOCH_UNIT
    redis.call('HSET', root .. ':leases', GENERATION, digits(EPOCH_UNIT))
    redis.call('HSET', root .. ':meta', 'revision', 0, 'roster', 0)
  end
  local epoch = digits(epoch_of(meta.generation))
  note_beat(root, now, ask.suspectMs)
  local before = enter(root, ask, now)
  memory = memory_of(root)
  memory.heard[ask.host] = ask.machineId
  local ended, awaiting, missed = false, nil, nil
  if not memory.generation then
    awaiting, missed = try_to_arm(root, meta, now, ask.windowMs)
    ended = meta.lost and not awaiting
  end
  local fallen, reclaimed = {}, {}
  if memory.generation then
    vouch(root, ask)
    open_session(root, ask.host, ask.machineId, epoch)
    fallen, reclaimed = sweep(root, now)
  end
  local roster = redis.call('HGET', root .. ':meta', 'roster')
  local hosts = ''
  if memory.generation and tonumber(roster) ~= seen.roster then
    hosts = ',"hosts":' .. encoded(redis.call('ZRANGE', root .. ':hosts', 0, -1))
  end
  local state = memory.generation and 'armed' or meta.lost and 'recovering' or 'arming'
  return '{"nowMs":"' .. digits(now) .. '","state":"' .. state
    .. '","mayAcquire":' .. tostring(memory.sessions[ask.host] ~= nil)
    .. ',"reassert":' .. tostring(redis.call('HGET', session, 'asserted') ~= epoch)
    .. ',"epoch":"' .. epoch
    .. '","before":' .. cjson.encode(before or cjson.null)
    .. ',"rebooted":' .. tostring((known[2] or ask.bootId) ~= ask.bootId)
    .. ',"began":' .. tostring(began)
    .. ',"ended":' .. tostring(ended)
    .. ',"awaiting":' .. encoded(awaiting or {}, MAX_NAMED)
    .. ',"missed":' .. encoded(missed or {}, MAX_NAMED)
    .. ',"fallen":' .. encoded(fallen)
    .. ',"reclaimed":' .. encoded(reclaimed)
    .. ',"due":' .. json_list(due_of(root, ask.host, now))
    .. ',"seen":{"generation":"' .. digits(meta.generation)
    .. '","revision":' .. digits(meta.revision) .. ',"roster":' .. roster .. hosts .. '}}'
end

-- forget {host} -> {known, released, more}: ends its leases, MAX_ENDED at a time; when none is left, the host is
-- unknown. HOST_ALIVE for one that lives.
local function forget_host(keys, args)
  local root = keys[1]
  local host = cjson.decode(args[1]).host
  local session = root .. ':host:' .. host
  local memory = memory_of(root)
  local now = now_ms()
  local deadline = redis.call('ZSCORE', root .. ':hosts', host)
  if not memory.generation and memory.heard[host]
    or memory.generation and deadline and tonumber(deadline) > now then
    return reply_of(refuse('HOST_ALIVE', 'host ' .. host .. ' is alive: stop its agent first', { host = host }))
  end
  if not redis.call('ZSCORE', root .. ':roster', host) then
    return '{"known":false,"released":0,"more":false}'
  end
  redis.call('HDEL', session, 'asserted')
  local released = 0
  for _, entry in ipairs(redis.call('ZRANGE', ids_key(root, host), 0, MAX_ENDED - 1)) do
    local lease = lease_at(root, host, entry)
    if lease then
      end_lease(root, lease, now, true)
      released = released + 1
    else
      redis.call('ZREM', ids_key(root, host), entry)
    end
  end
  local more = redis.call('ZCARD', ids_key(root, host)) > 0
  if not more then
    for _, list in ipairs({ 'hosts', 'suspects', 'joining', 'roster' }) do
      redis.call('ZREM', root .. ':' .. list, host)
    end
    redis.call('DEL', session)
    memory.sessions[host] = nil
    next_roster(root)
  end
  return '{"known":true,"released":' .. released .. ',"more":' .. tostring(more) .. '}'
end

-- hosts {cursor?, limit} -> {hosts: [{host, state, machineId?, bootId?, seenMs? (text), leases}…], cursor?, state,
-- sinceMs (text)}, by name. A host is live, joining, suspect, or awaited: while the ledger is not armed, one not
-- heard yet.
local function list_hosts(keys, args)
  local root = keys[1]
  local memory = memory_of(root)
  local meta = meta_of(root)
  local hosts, cursor = page_of(root .. ':roster', '', cjson.decode(args[1]), function(host)
    local session = root .. ':host:' .. host
    local held = redis.call('HMGET', session, 'machineId', 'bootId', 'seenMs', 'asserted')
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
      leases = redis.call('ZCARD', ids_key(root, host)),
    })
  end)
  local state = memory.generation and 'armed' or meta.lost and 'recovering'
    or meta.generation == 0 and 'unclaimed' or 'arming'
  return '{"hosts":' .. hosts .. ',"cursor":' .. cursor .. ',"state":"' .. state .. '"}'
end

redis.register_function({ function_name = 'volt1_heartbeat', callback = readable(heartbeat), flags = { 'allow-oom' } })
redis.register_function({ function_name = 'volt1_forget', callback = readable(forget_host), flags = { 'allow-oom' } })
redis.register_function({ function_name = 'volt1_hosts', callback = readable(list_hosts), flags = { 'no-writes' } })
redis.register_function({
  function_name = 'volt1_version',
  callback = function()
    return VERSION
  end,
  flags = { 'no-writes' },
})
