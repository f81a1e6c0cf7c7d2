-- What hosts say they hold, from their own records, where this server may not know it any more.
local MAX_IN_THE_WAY = 1000

-- The leases in the way of one: of its id, its addresses and its MAC, each once.
local function in_the_way(root, lease)
  local ids = {}
  local function note(id)
    if id then
      ids[id] = true
    end
  end
  note(redis.call('HEXISTS', root .. ':leases', lease.id) == 1 and lease.id)
  for family, address in pairs(lease.hex) do
    note(entry_of(pool_key(root, lease.network, family, 'held'), address))
  end
  note(redis.call('HGET', network_key(root, lease.network), 'mac:' .. lease.mac))
  local found = {}
  for id in pairs(ids) do
    local lease = lease_of(root, id)
    -- What leads to a lease may have outlived it.
    if lease then
      table.insert(found, lease)
    end
  end
  return found
end

-- Why a lease cannot be in the network that it names. `known` has the rules that this call has read.
local function misplaced(root, lease, known)
  local name = lease.network
  if not known[name] then
    known[name] = { there = redis.call('HEXISTS', network_key(root, name), 'revision') == 1 }
    place_all(root, name)
    for _, family in ipairs(known[name].there and FAMILIES or {}) do
      known[name][family] = rules_of(root, name, family)
    end
  end
  if not known[name].there then
    return 'UNKNOWN_NETWORK'
  end
  for family, address in pairs(lease.hex) do
    local rules = known[name][family]
    local wrong = not rules and 'ADDRESS_OUT_OF_RANGE'
      or barred_by(root, name, family, rules, address, lease.workload)
    if wrong then
      return wrong
    end
  end
  return nil
end

-- Whatever has vanished of the ways to a lease that is there.
local function find_again(root, lease, now)
  if redis.call('HEXISTS', network_key(root, lease.network), 'revision') == 0 then
    return
  end
  for family, address in pairs(lease.hex) do
    if not entry_of(pool_key(root, lease.network, family, 'held'), address) then
      -- It was counted when it was granted.
      take(root, lease.network, family, address, lease.id)
    end
  end
  if redis.call('HEXISTS', network_key(root, lease.network), 'mac:' .. lease.mac) == 0 then
    redis.call('HSET', network_key(root, lease.network), 'mac:' .. lease.mac, lease.id)
    append(root, lease.network, now, CHANGED, lease.id)
  end
  enter_network(root, lease.host, lease.network, applied_by(root, lease.host))
  redis.call('ZADD', ids_key(root, lease.host), '0', lease.network .. ' ' .. lease.id)
  if lease.expiresAtMs then
    redis.call('ZADD', due_key(root, lease.host), lease.expiresAtMs, lease.id)
  end
end

local function restore(root, lease, now)
  enter_network(root, lease.host, lease.network, applied_by(root, lease.host))
  for family, address in pairs(lease.hex) do
    local _, added = take(root, lease.network, family, address, lease.id)
    local held = pool_key(root, lease.network, family, 'held')
    keep_count(root, held_field(lease.network, family), held, added)
  end
  redis.call('HSET', network_key(root, lease.network), 'mac:' .. lease.mac, lease.id)
  redis.call('ZADD', ids_key(root, lease.host), '0', lease.network .. ' ' .. lease.id)
  redis.call('HSET', root .. ':leases', lease.id, cjson.encode(lease))
  if lease.expiresAtMs then
    redis.call('ZADD', due_key(root, lease.host), lease.expiresAtMs, lease.id)
  end
  append(root, lease.network, now, CHANGED, lease.id)
end

local function holder_of(lease)
  return { id = lease.id, host = lease.host, generation = lease.generation }
end

-- A lease under the other host's name; nothing else of it changes, its generation neither.
local function move_lease(root, host, to, entry)
  local lease = lease_at(root, host, entry)
  redis.call('ZREM', ids_key(root, host), entry)
  if not lease then
    -- It has vanished; that the host may have it is known as before.
    redis.call('ZADD', ids_key(root, to), '0', entry)
    return
  end
  lease.host = to
  redis.call('HSET', root .. ':leases', lease.id, cjson.encode(lease))
  redis.call('ZADD', ids_key(root, to), '0', entry)
  if lease.expiresAtMs then
    redis.call('ZREM', due_key(root, host), lease.id)
    redis.call('ZADD', due_key(root, to), lease.expiresAtMs, lease.id)
  end
  append(root, lease.network, now_ms(root), CHANGED, lease.id)
end

-- Whether a server that is older than the renaming of a host has its lease under the name of before.
local function is_under_old_name(root, lease, other)
  if other.id ~= lease.id or other.generation ~= lease.generation or other.host == lease.host then
    return false
  end
  local one = redis.call('HMGET', root .. ':host:' .. lease.host, 'machineId', 'agentId')
  local two = redis.call('HMGET', root .. ':host:' .. other.host, 'machineId', 'agentId')
  return one[1] and one[2] and one[1] == two[1] and one[2] == two[2]
end

-- Of two leases the one with the higher generation is the later: it stays, and the host of the other hears of it
-- when it re-asserts, which it is asked to.
local function reassert_lease(root, lease, now, known)
  local outcome = { id = lease.id, generation = lease.generation }
  local others = in_the_way(root, lease)
  for _, other in ipairs(others) do
    if is_under_old_name(root, lease, other) then
      move_lease(root, other.host, lease.host, other.network .. ' ' .. other.id)
      other.host = lease.host
    end
    if other.id == lease.id and other.generation == lease.generation and other.host == lease.host then
      memory_of(root).said[lease.id] = true
      find_again(root, other, now)
      outcome.outcome = 'kept'
      return outcome
    end
    if tonumber(other.generation) >= tonumber(lease.generation) then
      outcome.outcome = 'fenced'
      outcome.holder = holder_of(other)
      return outcome
    end
  end
  local wrong = misplaced(root, lease, known)
  if wrong then
    outcome.outcome = 'misplaced'
    outcome.reason = wrong
    return outcome
  end
  outcome.outcome = 'restored'
  memory_of(root).said[lease.id] = true
  for _, other in ipairs(others) do
    end_lease(root, other, now, false)
    outcome.displaced = holder_of(other)
    if other.host ~= lease.host then
      ask_again(root, other.host)
    end
  end
  restore(root, lease, now)
  return outcome
end

-- While an old server is being restored, what is in the way of a network gives way to it where it must have ended
-- since: a lease that nobody has re-asserted, or an overlapping network of a lower revision without any other.
-- Answers whether it did.
local function makes_way(root, refusal, revision, now)
  local memory = memory_of(root)
  local details = refusal.error.details
  if memory.generation then
    return false
  end
  if details.id then
    if memory.said[details.id] then
      return false
    end
    local lease = lease_of(root, details.id)
    if lease then
      end_lease(root, lease, now, true)
    end
    return lease ~= nil
  end
  local other = details.network
  if (tonumber(redis.call('HGET', network_key(root, other), 'revision') or 0) or 0) >= revision then
    return false
  end
  local ids = ids_in(root, other, MAX_IN_THE_WAY)
  for _, id in ipairs(ids) do
    if memory.said[id] then
      return false
    end
  end
  for _, id in ipairs(ids) do
    local lease = lease_of(root, id)
    if lease then
      end_lease(root, lease, now, true)
    end
  end
  if #ids < MAX_IN_THE_WAY then
    note_leaving(root, other, {}, revision)
    if not is_leaving(root, other) then
      forget_hosts(root, other)
    end
    remove_network(root, other)
  end
  return true
end

-- True where a network is here in that revision or a later one; then it is found again by its name and its subnets,
-- where those have vanished.
local function is_known(root, name, revision)
  local held = redis.call('HMGET', network_key(root, name), 'revision', 'family:4', 'family:6', 'network')
  local is = tonumber(held[1] or nil)
  if not is or is < revision or not held[4] then
    return false
  end
  -- Once is enough for all hosts: memory is as old as the recovery, if there is one.
  local found = memory_of(root).found
  if found[name] == is then
    return true
  end
  for index, family in ipairs(FAMILIES) do
    local rules = held[1 + index] and decoded(held[1 + index])
    if held[1 + index] and not rules or not decoded(held[4]) then
      return false
    end
    if rules then
      redis.call('ZADD', root .. ':subnets:' .. family, '0', rules.first .. '-' .. rules.last .. ' ' .. name)
    end
  end
  redis.call('ZADD', root .. ':networks', '0', name)
  found[name] = is
  return true
end

local function reassert_network(root, ask, now)
  local outcome = { network = ask.name, outcome = 'kept' }
  if is_known(root, ask.name, ask.revision) then
    return outcome
  end
  local deleting = deleting_for(root, ask)
  while deleting do
    if finish_some(root, deleting) then
      deleting = deleting_for(root, ask)
    end
  end
  local type_before = redis.call('HGET', network_key(root, ask.name), 'type')
  local refusal = obstacle_to(root, ask, type_before)
  while refusal and makes_way(root, refusal, ask.revision, now) do
    refusal = obstacle_to(root, ask, type_before)
  end
  if refusal then
    outcome.outcome = 'refused'
    outcome.reason = refusal.error.message
    outcome.address = refusal.error.details.address
    return outcome
  end
  if redis.call('HEXISTS', network_key(root, ask.name), 'revision') == 1 then
    -- An old server: hosts may have what it says still.
    note_leaving(root, ask.name, ask.families, ask.revision)
  end
  store_network(root, ask, ask.revision)
  finish_some(root, ask.name)
  outcome.outcome = 'restored'
  outcome.more = is_placing(root, ask.name)
  return outcome
end

-- reassert {host, machineId, epoch, known?: [[name, revision]…], networks: [as of network_put, with revision…],
-- reassert {host, machineId, epoch, known?: [[name, revision]…], networks: [as of network_put, with revision…],
--           leases: [as they are stored…], last, bridges?: [network…]}
-- -> {wanted: [name…], networks: [{network, outcome, more?, reason?, address?}…],
--     leases: [{id, generation, outcome, reason?, holder?, displaced?}…]}
-- wanted: of `known` those that are not here in that revision or a later one, and are to be sent whole.
-- Outcomes: kept; restored; of networks refused; of leases fenced (holder is a later lease) and misplaced.
-- more: its lists are to be placed, by network_finish, before leases there are re-asserted, or those take longer.
-- `last` says that this was all; with it `bridges`, the networks of whose bridges the host has one. A repeat changes
-- nothing.
local function reassert(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local meta = meta_of(root)
  local session = root .. ':host:' .. ask.host
  local who = who_of(ask)
  local other = foreign(root, ask.host, who)
  if other then
    return reply_of(other)
  end
  local heard = memory_of(root).heard[ask.host]
  if not heard or not is_same_who(heard, who) or redis.call('HEXISTS', session, 'machineId') == 0
    or digits(epoch_of(meta.generation)) ~= ask.epoch then
    return reply_of(recovering('host ' .. ask.host .. ' has to send a heartbeat first'))
  end
  for _, lease in ipairs(ask.leases) do
    if tonumber(lease.generation) > meta.generation then
      return reply_of(recovering('the ledger knows of no generation ' .. lease.generation))
    end
  end
  local newest = 0
  for _, network in ipairs(ask.networks) do
    newest = math.max(newest, network.revision)
  end
  for _, network in ipairs(ask.known or {}) do
    newest = math.max(newest, network[2])
  end
  if newest > meta.revision then
    return reply_of(recovering('the ledger knows of no revision ' .. digits(newest)))
  end
  local now = now_ms(root)
  local networks, leases, wanted, known = {}, {}, {}, {}
  for _, network in ipairs(ask.known or {}) do
    if not is_known(root, network[1], network[2]) then
      wanted[#wanted + 1] = cjson.encode(network[1])
    end
  end
  for index, network in ipairs(ask.networks) do
    networks[index] = cjson.encode(reassert_network(root, flat_definition(network), now))
  end
  for index, lease in ipairs(ask.leases) do
    leases[index] = cjson.encode(reassert_lease(root, lease, now, known))
  end
  if ask.last then
    enter_bridges(root, ask.host, ask.bridges or {})
    redis.call('HSET', session, 'asserted', ask.epoch)
    await_no_longer(memory_of(root), ask.host)
    open_session(root, ask.host, heard, ask.epoch)
    if memory_of(root).generation then
      memory_of(root).said, memory_of(root).found = {}, {}
    end
  end
  return '{"wanted":' .. json_list(wanted) .. ',"networks":' .. json_list(networks)
    .. ',"leases":' .. json_list(leases) .. '}'
end

redis.register_function('volt1_reassert', readable(reassert))
