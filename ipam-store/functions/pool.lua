-- The addresses of one network and family: which are free, which are held and by whom, and who held them last.
local POOL_PARTS = { 'allowed', 'fresh', 'held', 'last', 'by', 'free', 'reserved', 'closed', 'unsorted' }

local NEVER_MS = '315360000000'
-- How many entries of deleted networks one call removes.
local MAX_DROPPED = 1000

-- The release time, in the year 2100, that `last` has for an address that hosts may still have.
local UNTIL_LET_GO = 4102444800000

-- Changes the count of a key's entries by `step`. A key without a count starts with the number of its entries.
local function keep_count(root, field, key, step)
  local leases = root .. ':leases'
  memory_of(root).counted[field] = nil
  if step == 0 and redis.call('HEXISTS', leases, field) == 1 then
    return
  end
  if step == 0 or redis.call('HINCRBY', leases, field, step) == step then
    redis.call('HSET', leases, field, redis.call('ZCARD', key))
  end
end

-- How many entries a key has lost; 0 for one that was never counted.
local function missing_from(root, field, key)
  local counted = tonumber(redis.call('HGET', root .. ':leases', field) or 0)
  return counted and math.max(0, counted - redis.call('ZCARD', key)) or 1
end

local function held_field(network, family)
  return '#held:' .. family .. ':' .. network
end

local function network_key(root, name)
  return root .. ':net:' .. name
end

local function pool_key(root, network, family, part)
  return root .. ':net:' .. network .. ':' .. family .. ':' .. part
end

-- Moves the first range of `fresh` to next:<f>. Answers it.
local function open_next(root, network, family)
  local fresh = pool_key(root, network, family, 'fresh')
  local range = redis.call('ZRANGE', fresh, '0', '0')[1]
  if range then
    redis.call('ZREM', fresh, range)
    redis.call('HSET', network_key(root, network), 'next:' .. family, range)
  else
    redis.call('HDEL', network_key(root, network), 'next:' .. family)
  end
  return range
end

-- True for an address of next:<f>, the first fresh range.
local function is_next(root, network, family, address)
  local range = redis.call('HGET', network_key(root, network), 'next:' .. family)
  local first, last = string.match(range or '', '^(%x+)%-(%x+)$')
  return first and first <= address and address <= last
end

-- Lets `change` change the fresh ranges, with that of next:<f> among them.
local function change_fresh(root, network, family, change)
  local fresh = pool_key(root, network, family, 'fresh')
  local range = redis.call('HGET', network_key(root, network), 'next:' .. family)
  if range then
    redis.call('ZADD', fresh, '0', range)
  end
  change(fresh)
  open_next(root, network, family)
end

-- The entry of an address in a zset of "address ...", without the address.
local function entry_of(key, address)
  local found = redis.call('ZRANGEBYLEX', key, '[' .. address .. ' ', '(' .. address .. '!', 'LIMIT', '0', '1')
  return found[1] and string.sub(found[1], #address + 2)
end

-- The first entry of first to last in a zset of "address ...": address and the rest.
local function entry_between(key, first, last)
  local found = redis.call('ZRANGEBYLEX', key, '[' .. first, '(' .. last .. '!', 'LIMIT', '0', '1')
  if not found[1] then
    return nil
  end
  local space = string.find(found[1], ' ', 1, true)
  return string.sub(found[1], 1, space - 1), string.sub(found[1], space + 1)
end

-- Calls visit(address, rest) for each entry of first to last in a zset of "address ...", which may remove it.
local function each_between(key, first, last, visit)
  local from = '[' .. first
  while true do
    local entries = redis.call('ZRANGEBYLEX', key, from, '(' .. last .. '!', 'LIMIT', 0, 512)
    for _, entry in ipairs(entries) do
      local space = string.find(entry, ' ', 1, true)
      visit(string.sub(entry, 1, space - 1), string.sub(entry, space + 1))
    end
    if #entries < 512 then
      return
    end
    from = '(' .. entries[#entries]
  end
end

-- The time and workload of a release. The time is nil if no function has written the text.
local function time_and_workload(text)
  local space = string.find(text, ' ', 1, true) or 0
  return tonumber(string.sub(text, 1, space - 1)), string.sub(text, space + 1)
end

-- Notes who had an address last, and when.
local function remember(root, network, family, address, text)
  local at, workload = time_and_workload(text)
  redis.call('ZADD', pool_key(root, network, family, 'last'), '0', address .. ' ' .. text)
  redis.call('ZADD', pool_key(root, network, family, 'by'), '0', workload .. ' ' .. address)
  if is_in(pool_key(root, network, family, 'allowed'), address) then
    redis.call('ZADD', pool_key(root, network, family, 'free'), digits(at), address)
  end
end

local function forget(root, network, family, address, text)
  local _, workload = time_and_workload(text)
  redis.call('ZREM', pool_key(root, network, family, 'last'), address .. ' ' .. text)
  redis.call('ZREM', pool_key(root, network, family, 'by'), workload .. ' ' .. address)
  redis.call('ZREM', pool_key(root, network, family, 'free'), address)
end

-- Takes an address out of the fresh ranges, the first of which is `first_range`. Answers the new first range, if the
-- caller has yet to write it to the network's hash.
local function take_fresh(root, network, family, address, first_range)
  local fresh = pool_key(root, network, family, 'fresh')
  local first, last = string.match(first_range or '', '^(%x+)%-(%x+)$')
  if not first or address < first or address > last then
    cut(fresh, address, address)
    return nil
  end
  local above = address < last and hex_step(address, 1) .. '-' .. last
  if address == first then
    if not above then
      open_next(root, network, family)
    end
    return above or nil
  end
  if above then
    redis.call('ZADD', fresh, '0', above)
  end
  return first .. '-' .. hex_step(address, -1)
end

-- Gives an address to an id, without counting it. `known`: the first fresh range, as the caller has read it. Answers
-- the text of the address's last release (nil: never used), how many entries `held` has more, and what take_fresh
-- answers.
local function take_known(root, network, family, address, id, known)
  local before, first_range = entry_of(pool_key(root, network, family, 'last'), address), nil
  if before then
    forget(root, network, family, address, before)
  else
    -- `last` may have lost the address. It is removed all the same: a held address is not free.
    redis.call('ZREM', pool_key(root, network, family, 'free'), address)
    first_range = take_fresh(root, network, family, address, known)
  end
  local added = redis.call('ZADD', pool_key(root, network, family, 'held'), '0', address .. ' ' .. id)
  return before, added, first_range
end

-- As take_known, but reads the first fresh range itself, and writes the new one.
local function take(root, network, family, address, id)
  local key, field = network_key(root, network), 'next:' .. family
  local before, added, first_range = take_known(root, network, family, address, id, redis.call('HGET', key, field))
  if first_range then
    redis.call('HSET', key, field, first_range)
  end
  return before, added
end

-- Takes an address from an id. `text`: time and workload of its release, nil if the address was never used.
local function give_back(root, network, family, address, id, text)
  local held = pool_key(root, network, family, 'held')
  local removed = redis.call('ZREM', held, address .. ' ' .. id)
  -- Counted down even if the entry had vanished: it is no longer expected.
  local field = held_field(network, family)
  local counted = redis.call('HINCRBY', root .. ':leases', field, -1)
  if counted < 0 then
    counted = redis.call('ZCARD', held)
    redis.call('HSET', root .. ':leases', field, counted)
  end
  memory_of(root).counted[field] = counted
  if removed == 0 and entry_of(held, address) then
    return
  end
  if text then
    remember(root, network, family, address, text)
  elseif is_in(pool_key(root, network, family, 'allowed'), address) then
    change_fresh(root, network, family, function(fresh)
      cut(fresh, address, address)
      join(fresh, address, address)
    end)
  end
end

-- Removes what deleted networks have left in `gone` once all of it has cooled down; a part at a time.
local function drop_gone(root, now)
  for _, family in ipairs(FAMILIES) do
    local gone = root .. ':gone:' .. family
    local rests_until = tonumber(redis.call('HGET', root .. ':meta', 'gone:' .. family) or nil)
    if rests_until and rests_until <= now then
      local entries = redis.call('ZRANGE', gone, 0, MAX_DROPPED - 1)
      if #entries > 0 then
        redis.call('ZREM', gone, unpack(entries))
      else
        redis.call('HDEL', root .. ':meta', 'gone:' .. family)
      end
    end
  end
end
