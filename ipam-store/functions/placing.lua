-- The lists of a definition, each in a zset: `closed`, `reserved` and `allowed`. Exchanging a long list takes several
-- calls: the new list is kept in the network's hash, as placing:<f>:<part>, and the network is `unfinished` until the
-- zset has all of it.

-- The most entries, of the old and the new list together, that a put exchanges; and that a later call exchanges.
local PLACED_AT_ONCE = 1000
local MAX_PLACED = 500
local PUT_OFF = { 'reserved', 'allowed' }

local function placing_field(family, part)
  return 'placing:' .. family .. ':' .. part
end

-- Gives a zset these entries and no others; they are in order, and each begins with another address. Answers which
-- entries were removed and which were added; none if the exchange is put off. An earlier exchange that was put off is
-- dropped: the entries that it has placed are exchanged like all others.
local function place(root, network, family, part, entries, at_once)
  local hash, key = network_key(root, network), pool_key(root, network, family, part)
  local field = placing_field(family, part)
  redis.call('HDEL', hash, field)
  local before = redis.call('ZRANGE', key, 0, -1)
  if is_same_list(before, entries) then
    return {}, {}
  end
  if not at_once and #before + #entries > PLACED_AT_ONCE then
    redis.call('HSET', hash, field, '\n' .. table.concat(entries, '\n'), 'unfinished', 'sorting')
    return {}, {}
  end
  local removed, added = without(before, entries), without(entries, before)
  remove_all(key, removed)
  add_all(key, added)
  return removed, added
end

-- The next entries of an exchange that was put off, "address\nentry\nentry…". Answers the address from which they are
-- placed, the entries, the address before which they end (nil for the end of the list), and the index of that address
-- in the text.
local function first_placed(text)
  local from, at = string.match(text, '^(%x*)\n()')
  local entries = {}
  while at <= #text and #entries < MAX_PLACED do
    local stop = string.find(text, '\n', at, true) or #text + 1
    entries[#entries + 1] = string.sub(text, at, stop - 1)
    at = stop + 1
  end
  return from, entries, string.match(text, '^%x+', at), at
end

local function place_next(root, network, family, part, text)
  local hash, key = network_key(root, network), pool_key(root, network, family, part)
  local from, entries, stop, at = first_placed(text)
  local before = redis.call('ZRANGEBYLEX', key, from == '' and '-' or '[' .. from, stop and '(' .. stop or '+',
    'LIMIT', 0, MAX_PLACED)
  if #before == MAX_PLACED then
    stop = string.match(table.remove(before), '^%x+')
    while entries[1] and string.match(entries[#entries], '^%x+') >= stop do
      at = at - #table.remove(entries) - 1
    end
  end
  local removed, added = without(before, entries), without(entries, before)
  remove_all(key, removed)
  add_all(key, added)
  if part == 'allowed' and #removed + #added > 0 then
    local first, last
    for _, changed in ipairs({ removed, added }) do
      local its_first, its_last = string.match(changed[1] or '', '^%x+'), string.match(changed[#changed] or '', '%x+$')
      first = its_first and (not first or its_first < first) and its_first or first
      last = its_last and (not last or its_last > last) and its_last or last
    end
    redis.call('ZADD', pool_key(root, network, family, 'unsorted'), '0', first .. '-' .. last)
  end
  if stop then
    redis.call('HSET', hash, placing_field(family, part), stop .. '\n' .. string.sub(text, at))
  else
    redis.call('HDEL', hash, placing_field(family, part))
  end
end

-- Goes on with exchanges that were put off. Answers whether none is left.
local function place_some(root, network)
  for _, family in ipairs(FAMILIES) do
    for _, part in ipairs(PUT_OFF) do
      local text = redis.call('HGET', network_key(root, network), placing_field(family, part))
      if text then
        place_next(root, network, family, part, text)
        return false
      end
    end
  end
  return true
end

-- Finishes all exchanges at once, for a caller that will not call again.
local function place_all(root, network)
  while not place_some(root, network) do
  end
end

local function is_placing(root, network)
  for _, family in ipairs(FAMILIES) do
    for _, part in ipairs(PUT_OFF) do
      if redis.call('HEXISTS', network_key(root, network), placing_field(family, part)) == 1 then
        return true
      end
    end
  end
  return false
end

-- Removes the lists of a family that the network no longer has.
local function place_none(root, network, family)
  redis.call('HDEL', network_key(root, network), placing_field(family, 'reserved'))
  redis.call('DEL', pool_key(root, network, family, 'closed'), pool_key(root, network, family, 'reserved'))
end
