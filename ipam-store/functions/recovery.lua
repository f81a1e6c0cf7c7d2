-- How a recovery begins and how it ends. After its end the ledger may grant.
local MAX_COUNTED = 512
local MAX_NAMED = 64
local TELL_MS = 3000

-- Begins to look at all hosts anew.
local function recount(memory)
  memory.counted_to, memory.missing, memory.missing_count = '-', {}, 0
end

-- Looks at the next hosts: which live, and which are awaited. Answers whether it has looked at all.
local function count_hosts(root, meta)
  local memory = memory_of(root)
  if memory.counted_to == true then
    return true
  end
  local epoch = digits(epoch_of(meta.generation))
  local roster, hosts = root .. ':roster', root .. ':hosts'
  if memory.counted_to == '-'
    and redis.call('ZCARD', roster) ~= redis.call('ZCARD', hosts) + redis.call('ZCARD', root .. ':suspects') then
    -- Names have vanished. Those of live hosts are entered again, so that these hosts are awaited.
    for _, host in ipairs(redis.call('ZRANGE', hosts, 0, -1)) do
      redis.call('ZADD', roster, '0', host)
    end
  end
  local names = redis.call('ZRANGEBYLEX', roster, memory.counted_to, '+', 'LIMIT', 0, MAX_COUNTED)
  for _, host in ipairs(names) do
    local is_live = redis.call('ZSCORE', hosts, host) and true or false
    mark(memory, host, is_live)
    if is_live then
      local held = redis.call('HMGET', root .. ':host:' .. host, 'asserted', 'tell')
      if not memory.heard[host] or meta.lost and held[1] ~= epoch then
        await(memory, host)
      end
      if meta.lost and held[2] then
        memory.untold[held[2]] = memory.untold[held[2]] or {}
        memory.untold[held[2]][host] = true
      end
    end
  end
  memory.counted_to = #names < MAX_COUNTED or '(' .. names[#names]
  return memory.counted_to == true
end

-- Merges a page of a reporter's list of hosts: {roster, hosts, after?, last, suspectMs}. A host that it names is
-- awaited if the ledger does not know it, or if the reporter's list is newer. If it is newer, a host that it does not
-- name and that was not heard becomes suspect. Answers the name after which the same page has to be told again, if
-- there are too many hosts to look at in one call.
local function merge(root, meta, list, now)
  local memory = memory_of(root)
  local newer = list.roster > meta.roster
  local is_named = {}
  for _, host in ipairs(list.hosts) do
    is_named[host] = true
    local unknown = redis.call('ZADD', root .. ':roster', '0', host) == 1
    if unknown or newer then
      redis.call('ZREM', root .. ':suspects', host)
      redis.call('ZREM', root .. ':joining', host)
      if redis.call('ZADD', root .. ':hosts', 'NX', digits(now + list.suspectMs), host) == 1 then
        note_change(root, host, true)
        await(memory, host)
      end
    end
  end
  if not newer then
    return nil
  end
  local to = list.last and '+' or '[' .. list.hosts[#list.hosts]
  local known = redis.call('ZRANGEBYLEX', root .. ':roster', list.after and '(' .. list.after or '-', to,
    'LIMIT', 0, MAX_COUNTED)
  for _, host in ipairs(known) do
    if not is_named[host] and not memory.heard[host] and redis.call('ZSCORE', root .. ':hosts', host) then
      make_suspect(root, host, now)
    end
  end
  return #known == MAX_COUNTED and known[MAX_COUNTED] or nil
end

-- Merges the list of an agent before 1.7, which comes with its heartbeat.
local function merge_whole(root, meta, ask, now)
  local list = { roster = ask.seen.roster, hosts = ask.seen.hosts, last = true, suspectMs = ask.suspectMs }
  repeat
    list.after = merge(root, meta, list, now)
  until not list.after
  meta.roster = math.max(meta.roster, list.roster)
  redis.call('HSET', root .. ':meta', 'roster', digits(meta.roster))
end

local function is_above(seen, meta)
  return seen.generation > meta.generation or seen.revision > meta.revision or seen.roster > meta.roster
end

-- A reporter has seen more than this server has: the server has lost data. Begins the recovery, or widens it. The
-- roster is raised only when its list is told: raised before, it would hide that other hosts know that list, too.
-- Answers whether this call began the recovery.
local function take_for_lost(root, ask, meta, now)
  local seen, memory = ask.seen, memory_of(root)
  if memory.generation then
    memories[root] = nil
    memory = memory_of(root)
  end
  local began = not meta.lost
  memory.lost = true
  meta.lost = true
  if began or seen.generation > meta.generation then
    meta.generation = (epoch_of(math.max(seen.generation, meta.generation)) + 1) * EPOCH_UNIT
    await_unlisted(root, now)
    recount(memory)
    memory.since = now
  end
  if seen.revision > meta.revision then
    meta.revision = seen.revision
    memory.since = now
  end
  redis.call('HSET', root .. ':leases', GENERATION, digits(meta.generation))
  redis.call('HSET', root .. ':meta', 'revision', digits(meta.revision), 'roster', digits(meta.roster),
    'lost', '1')
  if seen.hosts then
    memory.since = now
    merge_whole(root, meta, ask, now)
  end
  return began
end

-- Whether a reporter has to tell its list of hosts now, during a recovery. A list is wanted if nobody has told it yet,
-- and if it is not older than the ledger's own or its host has found a loss. Of hosts with the same list, one at a time
-- is asked. The ledger waits for the list, even if the host that was asked is gone. `owes`: the list that this host has
-- to tell since an earlier heartbeat.
local function asks_for_list(root, ask, meta, owes, above, now)
  local seen, memory = ask.seen, memory_of(root)
  local session, list = root .. ':host:' .. ask.host, digits(seen.roster) .. ' ' .. digits(seen.digest)
  if owes and owes ~= list and memory.untold[owes] then
    memory.untold[owes][ask.host] = nil
    memory.untold[owes] = next(memory.untold[owes]) and memory.untold[owes]
  end
  local wanted = seen.roster > 0 and not memory.told[list] and (owes or above or seen.roster >= meta.roster)
  if not wanted then
    if owes then
      redis.call('HDEL', session, 'tell')
    end
    return false
  end
  redis.call('HSET', session, 'tell', list)
  if not memory.untold[list] then
    memory.untold[list] = {}
    memory.since = now
  end
  memory.untold[list][ask.host] = true
  local asked = memory.telling[list]
  if asked and asked.host ~= ask.host and now < asked.until_ms then
    return false
  end
  memory.telling[list] = { host = ask.host, until_ms = now + TELL_MS }
  return true
end

-- Names of some awaited hosts. If there are many, those named before are named again while they are missing: to find
-- the first entry of a Lua table takes long after many entries were removed from it.
local function awaited(memory)
  local names = {}
  for _, host in ipairs(memory.missing_count > MAX_NAMED and memory.named or {}) do
    names[#names + 1] = memory.missing[host] and host
  end
  if #names < math.min(memory.missing_count, MAX_NAMED / 2) then
    names = {}
    for host in pairs(memory.missing) do
      names[#names + 1] = host
      if #names == MAX_NAMED then
        break
      end
    end
    table.sort(names)
  end
  memory.named = names
  for list in pairs(memory.untold) do
    local asked = memory.telling[list]
    if asked and memory.missing_count == 0 then
      return { asked.host }
    end
  end
  return names
end

-- The operator's window is over: missing hosts become suspect, MAX_COUNTED in a call, and no list is waited for.
local function miss(root, now)
  local memory = memory_of(root)
  local count, given_up = 0, {}
  for host in pairs(memory.missing) do
    if count == MAX_COUNTED then
      break
    end
    count = count + 1
    given_up[count] = host
  end
  for _, host in ipairs(given_up) do
    make_suspect(root, host, now)
    await_no_longer(memory, host)
    if #memory.missed < MAX_NAMED then
      table.insert(memory.missed, host)
    end
  end
  memory.untold = {}
end

-- Arms the ledger when no host and no list is missing, or when the operator's window is over. Answers the missing
-- hosts, or nil and the hosts that were given up.
local function try_to_arm(root, meta, now, window_ms)
  local memory = memory_of(root)
  if not count_hosts(root, meta) then
    return awaited(memory)
  end
  if window_ms and now >= memory.since + window_ms then
    miss(root, now)
  end
  if memory.missing_count > 0 or is_untold(root) then
    return awaited(memory)
  end
  local changed, key = root .. ':changed', root .. ':meta'
  local roster = meta.roster + (tonumber(redis.call('HGET', key, 'pending') or 0) or 0)
  if meta.lost then
    -- Which changes of the list other hosts have seen is unknown: a host with another list reads all of it.
    roster = math.max(roster, meta.roster + 1)
    redis.call('DEL', changed)
  end
  if redis.call('EXISTS', changed) == 0 then
    redis.call('HSET', key, 'changedFrom', digits(roster))
  end
  redis.call('HSET', key, 'roster', digits(roster))
  redis.call('HDEL', key, 'lost', 'pending')
  memory.roster = roster
  for _, host in ipairs(redis.call('ZRANGE', root .. ':joining', 0, -1)) do
    redis.call('ZADD', root .. ':joining', digits(roster), host)
  end
  local missed = memory.missed
  memory.generation = meta.generation
  memory.lost, memory.said = nil, {}
  memory.untold, memory.told, memory.telling, memory.missed = {}, {}, {}, {}
  memory.sums[roster] = memory.sum
  return nil, missed
end

-- tell {host, machineId, agentId?, bootId?, roster, digest, hosts: [host…], after?, last, suspectMs} -> {after?}
-- A page, by name, of the list of hosts that the reporter has seen: the names after `after`, up to the last of `hosts`,
-- or to the end if `last`. The answer's after: the page has to be told again from that name on. Once all pages are
-- told, the host no longer owes the list.
local function tell(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local who = who_of(ask)
  local other = foreign(root, ask.host, who)
  if other then
    return reply_of(other)
  end
  local meta, memory = meta_of(root), memory_of(root)
  if memory.generation or not meta.lost then
    return '{}'
  end
  local heard = memory.heard[ask.host]
  if not heard or not is_same_who(heard, who) then
    return reply_of(recovering('host ' .. ask.host .. ' has to send a heartbeat first'))
  end
  local now = now_ms(root)
  local list = digits(ask.roster) .. ' ' .. digits(ask.digest)
  memory.telling[list] = { host = ask.host, until_ms = now + TELL_MS }
  local after = merge(root, meta, ask, now)
  if after then
    return reply_of({ after = after })
  end
  if ask.last then
    redis.call('HSET', root .. ':meta', 'roster', digits(math.max(meta.roster, ask.roster)))
    redis.call('HDEL', root .. ':host:' .. ask.host, 'tell')
    memory.told[list] = true
    memory.untold[list] = nil
  end
  return '{}'
end

redis.register_function({ function_name = 'volt1_tell', callback = readable(tell), flags = { 'allow-oom' } })
