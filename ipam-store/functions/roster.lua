-- The list of hosts: who is in it, who lives, who is suspect. Agents keep those that live, so that a server which was
-- emptied knows whom it has to wait for. They are told what has changed since they have looked, and compare a digest.
local MAX_CHANGED = 4096
local MAX_TOLD = 32
local ROSTER_PAGE = 500
local VOUCH_MS = 3000
-- Of how many lists of one host, read at once, Redis is as busy as it may be with nothing else.
local READS_PER_MS = 300
local DIGEST_UNIT = 281474976710656

-- Of a list, the sum over its names: whatever the order, and each change is one addition.
local function digest_of(host)
  return tonumber(string.sub(redis.sha1hex(host), 1, 12), 16)
end

-- This memory knows whether a host lives.
local function mark(memory, host, is_live)
  if (memory.live[host] or false) == is_live then
    return
  end
  memory.live[host] = is_live or nil
  memory.sum = (memory.sum + (is_live and digest_of(host) or -digest_of(host))) % DIGEST_UNIT
end

-- The list of hosts has changed by one. Until the ledger is armed the roster does not grow by itself, or it would hide
-- that a host has seen more; arming adds what is pending. After a loss all lists are compared anew. Answers the roster
-- that tells of the change.
local function note_change(root, host, is_live)
  local memory = memory_of(root)
  local meta, changed = root .. ':meta', root .. ':changed'
  mark(memory, host, is_live)
  local roster
  if memory.generation then
    roster = redis.call('HINCRBY', meta, 'roster', 1)
    memory.sums[roster] = memory.sum
    memory.sums[roster - MAX_CHANGED] = nil
  else
    roster = (tonumber(redis.call('HGET', meta, 'roster') or 0) or 0) + redis.call('HINCRBY', meta, 'pending', 1)
  end
  if not memory.lost then
    redis.call('ZADD', changed, digits(roster), host)
    if redis.call('ZCARD', changed) > MAX_CHANGED then
      local oldest = redis.call('ZRANGE', changed, 0, 0, 'WITHSCORES')
      redis.call('ZREM', changed, oldest[1])
      redis.call('HSET', meta, 'changedFrom', oldest[2])
    end
  end
  return roster
end

-- A host is not awaited any more, nor what it has to tell.
local function give_up(memory, host)
  await_no_longer(memory, host)
  memory.heard[host] = nil
  memory.sessions[host] = nil
  for list, hosts in pairs(memory.untold) do
    hosts[host] = nil
    memory.untold[list] = next(hosts) and hosts
  end
end

local function make_suspect(root, host, now)
  redis.call('ZREM', root .. ':joining', host)
  redis.call('ZADD', root .. ':suspects', digits(now), host)
  give_up(memory_of(root), host)
  if redis.call('ZREM', root .. ':hosts', host) == 1 then
    note_change(root, host, false)
  end
end

-- No list names the host any more.
local function strike(root, host)
  for _, list in ipairs({ 'suspects', 'joining', 'roster' }) do
    redis.call('ZREM', root .. ':' .. list, host)
  end
  redis.call('DEL', root .. ':host:' .. host)
  memory_of(root).rivals[host] = nil
  memory_of(root).applied[host] = nil
  give_up(memory_of(root), host)
  if redis.call('ZREM', root .. ':hosts', host) == 1 then
    note_change(root, host, false)
  end
end

-- Notes that a host lives. Answers what it was: live, suspect, or nil for unknown.
local function enter(root, ask, now)
  local hosts, session = root .. ':hosts', root .. ':host:' .. ask.host
  local before = redis.call('ZSCORE', hosts, ask.host) and 'live'
  local vouched = before or redis.call('ZCARD', hosts) == 0
  if not before then
    before = redis.call('ZREM', root .. ':suspects', ask.host) == 1 and 'suspect' or nil
    redis.call('ZADD', root .. ':roster', '0', ask.host)
  end
  if redis.call('HGET', session, 'machineId') ~= ask.machineId then
    redis.call('HDEL', session, 'asserted', 'applied')
    memory_of(root).applied[ask.host] = nil
  end
  redis.call('HSET', session, 'machineId', ask.machineId, 'bootId', ask.bootId, 'seenMs', digits(now))
  if redis.call('ZADD', hosts, digits(now + ask.suspectMs), ask.host) == 1 then
    local roster = note_change(root, ask.host, true)
    if not vouched then
      redis.call('ZADD', root .. ':joining', digits(roster), ask.host)
    end
  end
  return before
end

-- Whether the list that a reporter has seen is the one that this ledger had then. An agent before 1.7 sends its list,
-- and has had all of it with each other roster.
local function is_true(memory, seen)
  return seen.hosts or memory.sums[seen.roster] == seen.digest
end

-- A host that others have seen in a list will be awaited by them, should this server be emptied. So it may be
-- granted leases when one that is no newcomer has seen it, or when all are newcomers. Only of an armed ledger are
-- the numbers of lists its own. Answers whether the host itself is a newcomer, and whether it is to vouch at once:
-- one at a time is asked to.
local function vouch(root, ask, now)
  local joining, memory = root .. ':joining', memory_of(root)
  local newcomers = redis.call('ZCARD', joining)
  if newcomers == 0 then
    return false, false
  end
  if redis.call('ZSCORE', joining, ask.host) then
    if newcomers == redis.call('ZCARD', root .. ':hosts') then
      redis.call('ZREM', joining, ask.host)
      return false, false
    end
    return true, false
  end
  if is_true(memory, ask.seen) then
    newcomers = newcomers - redis.call('ZREMRANGEBYSCORE', joining, '-inf', digits(ask.seen.roster))
  end
  local voucher = memory.voucher
  if newcomers == 0 or voucher and voucher.host ~= ask.host and now < voucher.until_ms then
    return false, false
  end
  memory.voucher = { host = ask.host, until_ms = now + VOUCH_MS }
  return false, true
end

-- The last change of the list is the roster's, unless all of it is read anew anyway. Where others have vanished, a host
-- that reads them finds another digest, and reads all.
local function changes_missing(root)
  local meta = meta_of(root)
  local last = redis.call('ZRANGE', root .. ':changed', -1, -1, 'WITHSCORES')
  return meta.roster > meta.changed_from and tonumber(last[2] or 0) < meta.roster
end

-- JSON of hosts, each with whether it lives.
local function named(memory, hosts, step)
  local items = {}
  for index = 1, #hosts, step do
    items[#items + 1] = '[' .. cjson.encode(hosts[index]) .. (memory.live[hosts[index]] and ',true]' or ',false]')
  end
  return json_list(items)
end

-- JSON of the changes since a roster, where those are few; else within which time they may be read.
local function news_since(root, meta, since)
  local memory, changed = memory_of(root), root .. ':changed'
  local hosts = redis.call('ZCARD', root .. ':hosts')
  local after, count = '(' .. digits(since), hosts
  if since >= meta.changed_from then
    count = redis.call('ZCOUNT', changed, after, '+inf')
    if count > 0 and count <= MAX_TOLD then
      return ',"changes":' .. named(memory, redis.call('ZRANGEBYSCORE', changed, after, '+inf'), 1)
        .. ',"digest":' .. digits(memory.sum)
    end
  end
  return ',"behind":true,"withinMs":' .. math.floor(count * hosts / READS_PER_MS)
end

-- JSON of what a reporter does not know of an armed ledger's list of hosts. Most have seen the same.
local function news_of(root, meta, seen)
  local memory = memory_of(root)
  if seen.digest == memory.sum then
    return seen.roster == meta.roster and '' or ',"changes":[],"digest":' .. digits(memory.sum)
  end
  local news = memory.news
  if not news or news.roster ~= meta.roster then
    news = { roster = meta.roster, since = {} }
    memory.news = news
  end
  news.since[seen.roster] = news.since[seen.roster] or news_since(root, meta, seen.roster)
  return news.since[seen.roster]
end

-- roster {since, after?} -> {hosts: [[host, whether it lives]…], roster, digest, whole, more}
-- What has changed since a roster, in that order; where that is not known, or `after` is given, all hosts that live, by
-- name, those after that one. roster: up to which a list that has these is complete; of a whole one, from which on the
-- changes have to be read that were made meanwhile.
local function list_roster(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  local meta, memory = meta_of(root), memory_of(root)
  local whole = ask.after ~= nil or ask.since < meta.changed_from
  local hosts, roster, more = nil, meta.roster, false
  if whole then
    hosts = redis.call('ZRANGEBYLEX', root .. ':roster', ask.after and '(' .. ask.after or '-', '+',
      'LIMIT', 0, ROSTER_PAGE)
    more = #hosts == ROSTER_PAGE
  else
    hosts = redis.call('ZRANGEBYSCORE', root .. ':changed', '(' .. digits(ask.since), '+inf', 'WITHSCORES',
      'LIMIT', 0, ROSTER_PAGE)
    more = #hosts == 2 * ROSTER_PAGE
    roster = more and tonumber(hosts[#hosts]) or roster
  end
  return '{"hosts":' .. named(memory, hosts, whole and 1 or 2) .. ',"roster":' .. digits(roster)
    .. ',"digest":' .. digits(memory.sum) .. ',"whole":' .. tostring(whole) .. ',"more":' .. tostring(more) .. '}'
end

redis.register_function({ function_name = 'volt1_roster', callback = readable(list_roster), flags = { 'no-writes' } })
