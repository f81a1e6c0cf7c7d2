-- The list of hosts: which hosts there are, which live, and which are suspect. Agents keep the list of live hosts, so
-- that an emptied server learns from them which hosts to wait for. They are told the changes since their last look, and
-- compare a digest.
local MAX_CHANGED = 4096
local MAX_TOLD = 32
-- The entries of a page of changes, and of a page of all hosts, which is built once for many readers.
local CHANGES_PAGE, ROSTER_PAGE = 500, 2000
local VOUCH_MS = 3000
-- How many hosts a newcomer is told of until it reads the list, and how many are looked at to find them.
local MAX_VOUCHERS, MAX_LOOKED = 8, 64
-- The share of Redis's time for hosts that read the list while no newcomer waits for them, and how much of it is given
-- at once. What one host in the list costs: to build it, and to send it.
local READ_SHARE = 0.05
local READ_AT_ONCE_MS = 1000
local MADE_MS_A_HOST, SENT_MS_A_HOST = 0.001, 0.00003
local DIGEST_UNIT = 281474976710656

-- The digest of one name. That of a list is the sum: the order does not matter, and a change costs one addition.
local function digest_of(host)
  return tonumber(string.sub(redis.sha1hex(host), 1, 12), 16)
end

-- Notes in memory whether a host lives, and changes the digest with it.
local function mark(memory, host, is_live)
  if (memory.live[host] or false) == is_live then
    return
  end
  memory.live[host] = is_live or nil
  memory.sum = (memory.sum + (is_live and digest_of(host) or -digest_of(host))) % DIGEST_UNIT
end

-- Notes that the list of hosts has changed by one host. While the ledger is not armed the roster does not grow, or it
-- would hide that a host has seen more: changes are pending, and arming adds them. After a loss all lists are compared
-- anew. Answers the roster of the change.
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

-- Waits no longer for a host, nor for the list that it has to tell.
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

-- Removes a host from all lists.
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

-- Notes that a host lives. `known` is what was known of it (known_of). Answers its state before: live, suspect, or nil
-- for unknown.
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

-- Whether the list that a reporter has seen is the one that this ledger had at that roster. True for an agent before
-- 1.7, which sends its list: it was sent the whole list with each new roster.
local function is_true(memory, seen)
  return seen.hosts or memory.sums[seen.roster] == seen.digest
end

-- If this server is emptied, it waits for the hosts that other hosts have seen in its list. So a newcomer may be
-- granted leases only when a host that is no newcomer has seen it in the list, or when all hosts are newcomers. Called
-- only while the ledger is armed: only then are the numbers of lists its own. Answers whether the host itself is a
-- newcomer, and whether it has to vouch at once, which one host at a time is asked to.
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

-- Whether the last change of the list has vanished: it must have the number of the roster, unless hosts read the whole
-- list anyway. If other changes have vanished, a host that reads them finds another digest, and reads the whole list.
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

-- JSON of the changes since a roster; nil if there are none, or more than an answer holds, or if they are unknown.
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

-- JSON of some live hosts that are no newcomers. A host without a list has these until it may read the list. If this
-- server is emptied, it learns from any of them which hosts to wait for.
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

-- Whether one more host may read the list now: the list of ten thousand hosts is long, and all of them read it. While
-- it changes it is built anew for each reader, later once for all.
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

-- JSON of the changes of an armed ledger's list of hosts that a reporter does not know. Kept, since most reporters have
-- seen the same roster. If the changes do not fit into an answer, a host that has to vouch for newcomers may read them
-- at once.
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

-- A page of all hosts after one name: JSON, and whether more follow. It is kept until the list changes, if the page
-- before it is kept.
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
-- The changes since a roster, in their order. If they are not known, or more than a page, or if `after` is given: all
-- hosts by name, after that name (whole). roster: with these changes a list is complete up to there; of a whole list,
-- changes that were made meanwhile have to be read from there on.
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
