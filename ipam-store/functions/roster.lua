-- The list of hosts: who is in it, who lives, who is suspect. Agents keep those that live, so that a server which was
-- emptied knows whom it has to wait for. They are told what has changed since they have looked, and compare a digest.
local MAX_CHANGED = 4096
local MAX_TOLD = 32
-- Of a page of changes, and of one of all hosts, which is put together for many.
local CHANGES_PAGE, ROSTER_PAGE = 500, 2000
local VOUCH_MS = 3000
-- Hosts that a newcomer is told of until it reads the list, and among how many they are looked for.
local MAX_VOUCHERS, MAX_LOOKED = 8, 64
-- Of Redis's time, what is given to hosts that read the list of hosts without anybody who waits for it; so much of it at
-- once. What one host costs, to put together and to send.
local READ_SHARE = 0.05
local READ_AT_ONCE_MS = 1000
local MADE_MS_A_HOST, SENT_MS_A_HOST = 0.001, 0.00003
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
    memory.roster = roster
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

-- Notes that a host lives. `known` is what was known of it (known_of). Answers what it was: live, suspect, or nil for
-- unknown.
local function enter(root, ask, known, now)
  local hosts, session = root .. ':hosts', root .. ':host:' .. ask.host
  if known.machineId == ask.machineId and known.bootId == ask.bootId then
    redis.call('HSET', session, 'seenMs', digits(now))
  else
    if known.machineId ~= ask.machineId then
      redis.call('HDEL', session, 'asserted', 'applied')
      memory_of(root).applied[ask.host] = nil
    end
    redis.call('HSET', session, 'machineId', ask.machineId, 'bootId', ask.bootId, 'seenMs', digits(now))
  end
  if redis.call('ZADD', hosts, digits(now + ask.suspectMs), ask.host) == 0 then
    return 'live'
  end
  redis.call('ZADD', root .. ':roster', '0', ask.host)
  local roster = note_change(root, ask.host, true)
  if redis.call('ZCARD', hosts) > 1 then
    redis.call('ZADD', root .. ':joining', digits(roster), ask.host)
  end
  return redis.call('ZREM', root .. ':suspects', ask.host) == 1 and 'suspect' or nil
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
    memory.vouchers[memory.vouched % MAX_VOUCHERS + 1] = ask.host
    memory.vouched = memory.vouched + 1
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
local function hosts_json(memory, hosts)
  local items, live = {}, memory.live
  for index, host in ipairs(hosts) do
    items[index] = cjson.encode(host) .. (live[host] and ',true' or ',false')
  end
  return #items == 0 and '[]' or '[[' .. table.concat(items, '],[') .. ']]'
end

-- JSON of the changes since a roster; nil where they are more than an answer holds.
local function changes_since(root, meta, since)
  local memory, changed = memory_of(root), root .. ':changed'
  local after = '(' .. digits(since)
  if since < meta.changed_from then
    return nil
  end
  local hosts = redis.call('ZRANGEBYSCORE', changed, after, '+inf', 'LIMIT', 0, MAX_TOLD + 1)
  if #hosts == 0 or #hosts > MAX_TOLD then
    return nil
  end
  return ',"changes":' .. hosts_json(memory, hosts) .. ',"digest":' .. digits(memory.sum)
end

-- JSON of some hosts that live and are no newcomers: what a host that has no list has instead, until it is its turn to
-- read. By way of any of them it is found whom to wait for, should this server be emptied.
local function some_hosts(root)
  local memory = memory_of(root)
  local names, is_named = {}, {}
  local function add(host)
    if #names < MAX_VOUCHERS and memory.live[host] and not is_named[host] then
      is_named[host] = true
      names[#names + 1] = cjson.encode(host)
    end
  end
  for _, host in ipairs(memory.vouchers) do
    add(host)
  end
  for _, host in ipairs(#names == 0 and redis.call('ZRANGE', root .. ':hosts', 0, MAX_LOOKED - 1) or {}) do
    if not redis.call('ZSCORE', root .. ':joining', host) then
      add(host)
    end
  end
  return json_list(names)
end

-- Whether one more host may read the list now: that of ten thousand hosts is long, and all of them have it to read. While
-- it changes it is put together anew for each of them, and later once for all.
local function may_read(root, meta, now)
  local memory = memory_of(root)
  local next_ms = math.max(memory.next_read or 0, now - READ_AT_ONCE_MS)
  if next_ms > now then
    return false
  end
  local made = memory.pages and memory.pages.roster == meta.roster
  local cost = redis.call('ZCARD', root .. ':hosts') * (made and SENT_MS_A_HOST or MADE_MS_A_HOST)
  memory.next_read = next_ms + cost / READ_SHARE
  return true
end

-- JSON of what a reporter does not know of an armed ledger's list of hosts. Most have seen the same. Whoever is to vouch
-- for newcomers reads at once what an answer does not hold.
local function news_of(root, meta, seen, is_to_vouch, now)
  local memory = memory_of(root)
  if seen.digest == memory.sum then
    return seen.roster == meta.roster and '' or ',"changes":[],"digest":' .. digits(memory.sum)
  end
  local news = memory.news
  if not news or news.roster ~= meta.roster then
    news = { roster = meta.roster, since = {} }
    memory.news = news
  end
  if news.since[seen.roster] == nil then
    news.since[seen.roster] = changes_since(root, meta, seen.roster) or false
  end
  if news.since[seen.roster] then
    return news.since[seen.roster]
  end
  return (seen.roster == 0 and ',"some":' .. some_hosts(root) or '')
    .. ((is_to_vouch or may_read(root, meta, now)) and ',"behind":true' or '')
end

-- A page of all hosts, those after one name: JSON, and whether more follow. Kept until the list is another, where the page
-- before was.
local function page_after(root, meta, after)
  local memory = memory_of(root)
  local pages = memory.pages
  if not pages or pages.roster ~= meta.roster then
    pages = { roster = meta.roster, after = { [''] = false } }
    memory.pages = pages
  end
  local page = pages.after[after]
  if not page then
    local hosts = redis.call('ZRANGEBYLEX', root .. ':roster', after == '' and '-' or '(' .. after, '+',
      'LIMIT', 0, ROSTER_PAGE)
    local last = #hosts == ROSTER_PAGE and hosts[ROSTER_PAGE] or nil
    page = { text = hosts_json(memory, hosts), more = last ~= nil }
    if pages.after[after] == false then
      pages.after[after] = page
      if last then
        pages.after[last] = false
      end
    end
  end
  return page.text, page.more
end

-- roster {since, after?} -> {hosts: [[host, whether it lives]…], roster, digest, whole, more}
-- What has changed since a roster, in that order; where that is not known, or more than a page, or `after` is given, all
-- hosts, by name, those after that one. roster: up to which a list that has these is complete; of a whole one, from which on the
-- changes have to be read that were made meanwhile.
local function list_roster(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  local meta, memory = meta_of(root), memory_of(root)
  local changed, since = root .. ':changed', '(' .. digits(ask.since)
  local whole = ask.after ~= nil or ask.since < meta.changed_from
    or redis.call('ZCOUNT', changed, since, '+inf') > CHANGES_PAGE
  local hosts, more
  if whole then
    hosts, more = page_after(root, meta, ask.after or '')
  else
    hosts, more = hosts_json(memory, redis.call('ZRANGEBYSCORE', changed, since, '+inf')), false
  end
  return '{"hosts":' .. hosts .. ',"roster":' .. digits(meta.roster) .. ',"digest":' .. digits(memory.sum)
    .. ',"whole":' .. tostring(whole) .. ',"more":' .. tostring(more) .. '}'
end

redis.register_function({ function_name = 'volt1_roster', callback = readable(list_roster), flags = { 'no-writes' } })
