-- When the ledger may have lost data, hosts tell it the leases and networks of their own records.
local MAX_IN_THE_WAY = 1000

-- During a recovery, removes what is in the way of a re-asserted network and must have ended since the state that the
-- server has: a lease that nobody has re-asserted, or an overlapping network of a lower revision without re-asserted
-- leases. Answers whether it has removed anything.
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
  local ended = false
  for _, id in ipairs(ids) do
    local lease = lease_of(root, id)
    if lease then
      end_lease(root, lease, now, true)
      ended = true
    end
  end
  if #ids < MAX_IN_THE_WAY then
    note_leaving(root, other, {}, revision)
    if not is_leaving(root, other) then
      forget_hosts(root, other)
    end
    remove_network(root, other)
    return true
  end
  -- Ids without a lease are for the check of the ledger to take away: they would be in the way for ever.
  return ended
end

-- True if the ledger has a network in that revision or a later one. Its entries in the indexes of names and subnets are
-- added again if they have vanished.
local function is_known(root, name, revision)
  local held = redis.call('HMGET', network_key(root, name), 'revision', 'family:4', 'family:6', 'network')
  local is = tonumber(held[1] or nil)
  if not is or is < revision or not held[4] then
    return false
  end
  -- Once is enough for all hosts: a recovery begins with a new memory.
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
    -- The ledger has an older definition: hosts may still have addresses that it kept closed.
    note_leaving(root, ask.name, ask.families, ask.revision)
  end
  store_network(root, ask, ask.revision)
  finish_some(root, ask.name)
  outcome.outcome = 'restored'
  outcome.more = is_placing(root, ask.name)
  return outcome
end

-- reassert {host, machineId, epoch, known?: [[name, revision]…], networks: [as of network_put, with revision…],
--           leases: [as they are stored…], last, bridges?: [network…]}; or, of an agent since 1.7, each lease in an
--           argument of its own
-- -> {wanted: [name…], networks: [{network, outcome, more?, reason?, address?}…],
--     leases: [{id, generation, outcome, reason?, holder?, displaced?}…]}
-- wanted: networks of `known` that are not here in that revision or a later one, and have to be sent whole.
-- Outcomes: kept; restored; for networks also refused; for leases also fenced (holder: a later lease) and misplaced.
-- more: call network_finish to place the lists of the network before leases in it are re-asserted, or those take
-- longer. last: this was all; then `bridges` names the networks for which the host has a bridge. A repeat changes
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
  local texts = {}
  for index = 2, #args do
    texts[index - 1] = args[index]
    ask.leases[index - 1] = cjson.decode(args[index])
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
  local networks, leases, wanted = {}, nil, {}
  for _, network in ipairs(ask.known or {}) do
    if not is_known(root, network[1], network[2]) then
      wanted[#wanted + 1] = cjson.encode(network[1])
    end
  end
  for index, network in ipairs(ask.networks) do
    networks[index] = cjson.encode(reassert_network(root, flat_definition(network), now))
  end
  leases = reassert_leases(root, ask.host, now, ask.leases, texts)
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
