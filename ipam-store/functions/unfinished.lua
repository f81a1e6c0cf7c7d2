-- A change of a network with many used addresses takes more than one call, so that no call holds up the server. The
-- first call makes the change, and sets `unfinished` in the network. Nothing is granted there until the rest is done.
-- Each later request for the network does a part of it: a change is finished even if its maker has gone.

-- The most entries that one call moves. A range counts as several.
local MAX_MOVED = 500
local MOVED_A_RANGE = 8
-- The longest reuseDelaySeconds (protocol/network.ts), for a network that has lost its own.
local LONGEST_DELAY_MS = 31536000000

-- Notes until when entries of `gone` cool down. An earlier library let the key expire by the server's clock, which may
-- be set to another time.
local function prolong_gone(root, family, now, delay)
  local gone = root .. ':gone:' .. family
  if redis.call('EXISTS', gone) == 1 then
    redis.call('PEXPIRE', gone, NEVER_MS)
    local rests_until = math.max(now + delay, tonumber(redis.call('HGET', root .. ':meta', 'gone:' .. family) or 0) or 0)
    redis.call('HSET', root .. ':meta', 'gone:' .. family, digits(rests_until))
  end
end

-- Moves released addresses of first to last, MAX_MOVED at most, from the network to `gone`, where they go on cooling
-- down. Answers how many.
local function bury_some(root, network, family, first, last, now)
  local key = pool_key(root, network, family, 'last')
  local delay = tonumber(redis.call('HGET', network_key(root, network), 'delayMs') or nil) or LONGEST_DELAY_MS
  local entries = redis.call('ZRANGEBYLEX', key, '[' .. first, '(' .. last .. '!', 'LIMIT', 0, MAX_MOVED)
  local by, free, resting = {}, {}, {}
  for _, entry in ipairs(entries) do
    local address, at, workload = string.match(entry, '^(%x+) (%d+) (%S+)$')
    if address then
      by[#by + 1] = workload .. ' ' .. address
      free[#free + 1] = address
      -- An address that hosts have to let go of is in `leaving`, and need not be in `gone`.
      local rests = tonumber(at) < UNTIL_LET_GO and tonumber(at) + delay > now
      resting[#resting + 1] = rests and entry or nil
    end
  end
  remove_all(key, entries)
  remove_all(pool_key(root, network, family, 'by'), by)
  remove_all(pool_key(root, network, family, 'free'), free)
  add_all(root .. ':gone:' .. family, resting)
  prolong_gone(root, family, now, delay)
  return #entries
end

-- Moves entries of first to last, MAX_MOVED at most, from `gone` into a network that now has these addresses. They are
-- sorted into its pool later. Answers how many.
local function unearth_some(root, network, family, first, last)
  local gone = root .. ':gone:' .. family
  local entries = redis.call('ZRANGEBYLEX', gone, '[' .. first, '(' .. last .. '!', 'LIMIT', 0, MAX_MOVED)
  if #entries > 0 then
    remove_all(gone, entries)
    local held, released = pool_key(root, network, family, 'held'), {}
    for _, entry in ipairs(not_leaving(root, family, entries)) do
      -- A host may have re-asserted a lease on the address meanwhile.
      released[#released + 1] = not entry_of(held, string.match(entry, '^%x+')) and entry or nil
    end
    add_all(pool_key(root, network, family, 'last'), released)
    redis.call('ZADD', pool_key(root, network, family, 'unsorted'), '0',
      string.match(entries[1], '^%x+') .. '-' .. string.match(entries[#entries], '^%x+'))
  end
  if redis.call('EXISTS', gone) == 0 then
    redis.call('HDEL', root .. ':meta', 'gone:' .. family)
  end
  return #entries
end

-- The allowed ranges within first to last, cut to it, and the address up to which they are complete.
local function allowed_between(root, network, family, first, last)
  local key = pool_key(root, network, family, 'allowed')
  local ranges = redis.call('ZRANGEBYLEX', key, '(' .. first .. '-g', '(' .. last .. '-g', 'LIMIT', 0, MAX_MOVED)
  local stop = last
  if #ranges == MAX_MOVED then
    stop = hex_step(bounds_of(table.remove(ranges)), -1)
  end
  local before, open = range_before(key, first), {}
  if before then
    table.insert(ranges, 1, before)
  end
  for _, range in ipairs(ranges) do
    local from, to = bounds_of(range)
    if to >= first and from <= stop then
      open[#open + 1] = { from < first and first or from, to > stop and stop or to }
    end
  end
  return open, stop
end

-- The entries "address rest" of first to last, and the address up to which they are complete.
local function entries_between(key, first, last)
  local entries = redis.call('ZRANGEBYLEX', key, '[' .. first, '(' .. last .. '!', 'LIMIT', 0, MAX_MOVED)
  return entries, #entries == MAX_MOVED and string.match(entries[MAX_MOVED], '^%x+') or last
end

-- Adds released addresses to `free` if the pool gives them out, and removes the others from it. Adds all to `by`.
local function sort_released(root, network, family, released, open)
  local by, free, closed = {}, {}, {}
  local at_range = 1
  for _, entry in ipairs(released) do
    local address, text = string.match(entry, '^(%x+) (.*)$')
    local at, workload = time_and_workload(text)
    by[#by + 1] = workload .. ' ' .. address
    while open[at_range] and open[at_range][2] < address do
      at_range = at_range + 1
    end
    if open[at_range] and open[at_range][1] <= address then
      free[#free + 1] = digits(at)
      free[#free + 1] = address
    else
      closed[#closed + 1] = address
    end
  end
  add_all(pool_key(root, network, family, 'by'), by)
  remove_all(pool_key(root, network, family, 'free'), closed)
  if #free > 0 then
    redis.call('ZADD', pool_key(root, network, family, 'free'), unpack(free))
  end
end

-- Sorts the addresses from `first` on into the pool. Answers the last address that it has sorted, and the work done.
local function sort_between(root, network, family, first, last)
  local open, stop = allowed_between(root, network, family, first, last)
  local held, held_stop = entries_between(pool_key(root, network, family, 'held'), first, stop)
  local released, released_stop = entries_between(pool_key(root, network, family, 'last'), first, held_stop)
  stop = released_stop
  local used, kept = {}, {}
  for _, entries in ipairs({ held, released }) do
    for _, entry in ipairs(entries) do
      local address = string.match(entry, '^%x+')
      if address <= stop then
        used[#used + 1] = { address, address }
      end
    end
  end
  table.sort(used, function(a, b) return a[1] < b[1] end)
  for _, range in ipairs(open) do
    if range[1] <= stop then
      kept[#kept + 1] = { range[1], range[2] > stop and stop or range[2] }
    end
  end
  change_fresh(root, network, family, function(fresh)
    cut(fresh, first, stop)
    join_all(fresh, minus(kept, used))
  end)
  sort_released(root, network, family, released, kept)
  return stop, #used + MOVED_A_RANGE * (#kept + 1)
end

-- Whether a change of a network's pools is unfinished, even if the network has lost the field that says so.
local function is_unsorted(root, name)
  local key = network_key(root, name)
  if redis.call('HEXISTS', key, 'unfinished') == 1 then
    return true
  end
  for _, family in ipairs(FAMILIES) do
    if redis.call('ZCARD', pool_key(root, name, family, 'unsorted')) > 0 then
      return true
    end
    local rules = decoded(redis.call('HGET', key, 'family:' .. family) or '')
    if rules and entry_between(root .. ':gone:' .. family, rules.first, rules.last) then
      return true
    end
  end
  return false
end

-- Goes on with a change of a network's pools. Answers whether it is finished.
local function sort_on(root, network)
  if not place_some(root, network) then
    return false
  end
  local moved = 0
  for _, family in ipairs(FAMILIES) do
    local rules = decoded(redis.call('HGET', network_key(root, network), 'family:' .. family) or '')
    while rules and moved < MAX_MOVED do
      local some = unearth_some(root, network, family, rules.first, rules.last)
      moved = moved + some
      if some < MAX_MOVED then
        break
      end
    end
    local unsorted = pool_key(root, network, family, 'unsorted')
    while moved < MAX_MOVED do
      local range = redis.call('ZRANGE', unsorted, 0, 0)[1]
      if not range then
        break
      end
      redis.call('ZREM', unsorted, range)
      local first, last = string.match(range, '^(%x+)%-(%x+)$')
      -- An entry of another form was made by no function, and names no addresses.
      if first then
        local stop, some = sort_between(root, network, family, first, last)
        if stop < last then
          redis.call('ZADD', unsorted, '0', hex_step(stop, 1) .. '-' .. last)
        end
        moved = moved + some
      end
    end
    if moved >= MAX_MOVED then
      return false
    end
  end
  redis.call('HDEL', network_key(root, network), 'unfinished')
  return true
end

-- Changes which ranges "first-last" the pool gives out. finish_some sorts the addresses of the difference.
local function set_allowed(root, network, family, ranges, at_once)
  local removed, added = place(root, network, family, 'allowed', ranges, at_once)
  if #removed + #added == 0 then
    return
  end
  local held, last = pool_key(root, network, family, 'held'), pool_key(root, network, family, 'last')
  removed, added = pairs_of(removed), pairs_of(added)
  if #removed == 0 and #added == #ranges and redis.call('EXISTS', held, last) == 0 then
    -- The network is new: nobody has had any of its addresses.
    change_fresh(root, network, family, function(fresh)
      join_all(fresh, added)
    end)
    return
  end
  local unsorted = {}
  for _, list in ipairs({ minus(removed, added), minus(added, removed) }) do
    for _, range in ipairs(list) do
      unsorted[#unsorted + 1] = range[1] .. '-' .. range[2]
    end
  end
  add_all(pool_key(root, network, family, 'unsorted'), unsorted)
  redis.call('HSET', network_key(root, network), 'unfinished', 'sorting')
end

-- Begins a removal: the network is gone from here on. Its subnets stay taken until released addresses are in `gone`.
local function begin_removal(root, name)
  local key = network_key(root, name)
  redis.call('HSET', key, 'unfinished', 'deleting')
  redis.call('HDEL', key, 'revision', 'network', 'digest')
  redis.call('DEL', log_key(root, name))
  if redis.call('ZREM', root .. ':networks', name) == 1 then
    keep_count(root, '#networks', root .. ':networks', -1)
  end
  for _, family in ipairs(FAMILIES) do
    redis.call('HDEL', root .. ':leases', held_field(name, family))
    memory_of(root).counted[held_field(name, family)] = nil
  end
end

-- Goes on with a removal. Answers whether it is finished.
local function remove_on(root, name)
  local key = network_key(root, name)
  local now = now_ms(root)
  for _, family in ipairs(FAMILIES) do
    if bury_some(root, name, family, '0', 'g', now) == MAX_MOVED then
      return false
    end
  end
  for _, family in ipairs(FAMILIES) do
    -- The entries are found by the network's name, since its rules may have vanished.
    local subnets = root .. ':subnets:' .. family
    for _, entry in ipairs(redis.call('ZRANGE', subnets, 0, -1)) do
      if string.match(entry, '%S+$') == name then
        keep_count(root, '#subnets:' .. family, subnets, -redis.call('ZREM', subnets, entry))
      end
    end
    for _, part in ipairs(POOL_PARTS) do
      redis.call('DEL', pool_key(root, name, family, part))
    end
  end
  redis.call('DEL', key)
  return true
end

-- Whether addresses of a network may be held, even if its definition is lost.
local function may_be_held(root, name)
  for _, family in ipairs(FAMILIES) do
    local held = pool_key(root, name, family, 'held')
    if redis.call('EXISTS', held) == 1 or missing_from(root, held_field(name, family), held) > 0 then
      return true
    end
  end
  return false
end

-- Whether a network is being deleted. Also true if it has lost the field that says so: then it has no definition, is
-- not listed, and nobody holds any of its addresses.
local function is_deleting(root, name)
  local key = network_key(root, name)
  if redis.call('HGET', key, 'unfinished') == 'deleting' then
    return true
  end
  local defined = redis.call('HMGET', key, 'revision', 'network', 'digest')
  return not (defined[1] or defined[2] or defined[3]) and redis.call('EXISTS', key) == 1
    and not redis.call('ZSCORE', root .. ':networks', name) and not may_be_held(root, name)
end

-- Goes on with an unfinished change of a network. Answers whether it is finished.
local function finish_some(root, name)
  if is_deleting(root, name) then
    return remove_on(root, name)
  end
  if not is_unsorted(root, name) or sort_on(root, name) then
    return true
  end
  redis.call('HSET', network_key(root, name), 'unfinished', 'sorting')
  return false
end

-- Adds subnets that are missing in the index: of networks that are being deleted, since nobody may have them yet.
local function list_deletions(root, family)
  for _, name in ipairs(redis.call('ZRANGE', root .. ':revised', 0, -1)) do
    if not redis.call('ZSCORE', root .. ':networks', name) and is_deleting(root, name) then
      local rules = decoded(redis.call('HGET', network_key(root, name), 'family:' .. family) or '')
      if rules then
        redis.call('ZADD', root .. ':subnets:' .. family, '0', rules.first .. '-' .. rules.last .. ' ' .. name)
      end
    end
  end
end

local function refuse_unfinished(name)
  return refuse('RECOVERING', 'a change of network ' .. name .. ' is unfinished', { unfinished = name }, 250)
end

-- finish {name} -> {more}: goes on with an unfinished change of a network; to be called again while `more` is true.
-- While the ledger is not armed, it only places the lists of a network that a host has re-asserted, before the host
-- re-asserts leases there.
local function finish_network(keys, args)
  local root, name = keys[1], cjson.decode(args[1]).name
  if not is_current(root) and is_placing(root, name) then
    place_some(root, name)
    return reply_of({ more = is_placing(root, name) })
  end
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  return reply_of({ more = not finish_some(root, name) })
end

-- Allowed when Redis is out of memory: it frees some.
redis.register_function({
  function_name = 'volt1_network_finish',
  callback = readable(finish_network),
  flags = { 'allow-oom' },
})
