-- Which address a request gets.

-- When to ask again for an address that a host has yet to let go of.
local LET_GO_RETRY_MS = 1000

-- The index of next:<f> in the fields that open_network reads.
local NEXT = { ['4'] = 3, ['6'] = 4 }

-- The address that a request names, if it names one.
local function asked_of(wanted)
  return wanted ~= '-' and string.sub(wanted, 1, 1) ~= 'r' and wanted or nil
end

-- Reads the fields of its network that a batch needs, once for the batch. From then on next:<f> is changed here and in
-- Redis.
local function open_network(batch)
  batch.network = redis.call('HMGET', batch.key, 'revision', 'delayMs', 'next:4', 'next:6', 'unchecked', 'unfinished')
  batch.delay_ms = tonumber(batch.network[2])
  return batch.network
end

-- Why nothing is granted in a network: it does not exist, has another revision, is unfinished, or has lost keys.
local function closed_network(batch)
  local network = open_network(batch)
  local revision = network[1]
  if not revision then
    if has_remains(batch.root, batch.name) then
      return contradiction('the definition of network ' .. batch.name .. ' has vanished')
    end
    return refuse('UNKNOWN_NETWORK', 'there is no network ' .. batch.name, { network = batch.name })
  end
  if revision ~= batch.revision then
    if not tonumber(revision) then
      return contradiction('the definition of network ' .. batch.name .. ' cannot be read')
    end
    return refuse('REVISION_CHANGED', 'network ' .. batch.name .. ' is at revision ' .. revision)
  end
  if network[6] then
    if batch.is_preview or not finish_some(batch.root, batch.name) then
      return refuse_unfinished(batch.name)
    end
    network = open_network(batch)
  end
  if network[5] or not batch.delay_ms then
    return contradiction('parts of network ' .. batch.name .. ' have vanished')
  end
  for _, family in ipairs(batch.families) do
    local field = batch.count_fields[family]
    if not batch.memory.counted[field] then
      batch.memory.counted[field] = tonumber(redis.call('HGET', batch.leases, field)
        or redis.call('ZCARD', batch.held_keys[family])) or math.huge
    end
  end
  return nil
end

-- The refusal if `held` has fewer addresses than were granted. Checked before `held` is trusted.
local function incomplete_held(batch, family)
  local field = batch.count_fields[family]
  local held = redis.call('ZCARD', batch.held_keys[family])
  local counted = batch.memory.counted[field]
  if held < counted then
    -- The next request reads the count again: it may have been repaired meanwhile.
    batch.memory.counted[field] = nil
    batch.network = false
    return contradiction('network ' .. batch.name .. ' has ' .. held .. ' of ' .. counted
      .. ' held IPv' .. family .. ' addresses')
  end
  return nil
end

-- The refusal of an address that one index calls free and another does not; nil if they agree.
local function contradicted(batch, family, address, index)
  local id = entry_of(batch.key .. ':' .. family .. ':held', address)
  local why = id and 'held by ' .. id
  if not why and index == 'free' then
    local text = entry_of(batch.key .. ':' .. family .. ':last', address)
    why = not (text and time_and_workload(text)) and 'said to be free, and nobody has released it'
  end
  if not why then
    return nil
  end
  if not string.match(address, '^%x+$') then
    return contradiction('in network ' .. batch.name .. ' `' .. index .. '` has what is no address')
  end
  local refusal = contradiction('in network ' .. batch.name .. ' {address} is in `' .. index .. '` and ' .. why)
  refusal.error.details = { address = address }
  return refusal
end

-- The refusal if the first address of the first fresh range is held. A range without held addresses counts as checked.
local function held_in_next(batch, family, range)
  local first, last = string.match(range, '^(%x+)%-(%x+)$')
  if not first then
    return contradiction('the first free range of network ' .. batch.name .. ' cannot be read')
  end
  if entry_between(batch.held_keys[family], first, last) then
    return contradicted(batch, family, first, 'fresh')
  end
  batch.memory.fresh[batch.held_keys[family]] = range
  return nil
end

-- Checks an address that a request names, or that is reserved for it: a refusal, or nil and the address.
local function pick_named(batch, ask, family, address)
  if batch.avoided and batch.avoided[address] then
    return refuse('ADDRESS_OUT_OF_RANGE', 'host ' .. batch.host .. ' itself has {address}',
      { address = address, host = batch.host })
  end
  local id = entry_of(batch.key .. ':' .. family .. ':held', address)
  if id then
    return refuse('ADDRESS_IN_USE', '{address} is held by ' .. id, { address = address, id = id })
  end
  local text = entry_of(batch.key .. ':' .. family .. ':last', address)
  if text then
    local at, workload = time_and_workload(text)
    if at and at >= UNTIL_LET_GO then
      return refuse('ADDRESS_IN_USE', '{address} was closed, and not every host has let go of it yet',
        { address = address }, LET_GO_RETRY_MS)
    end
    local rest = at + batch.delay_ms - batch.now
    if rest > 0 and workload ~= ask.workload then
      return refuse('ADDRESS_IN_USE', '{address} is cooling down', { address = address }, rest)
    end
  elseif redis.call('ZSCORE', batch.key .. ':' .. family .. ':free', address) then
    return contradicted(batch, family, address, 'free')
  elseif is_in(batch.key .. ':' .. family .. ':allowed', address)
    and not is_next(batch.root, batch.name, family, address)
    and not is_in(batch.key .. ':' .. family .. ':fresh', address) then
    local refusal = contradiction('in network ' .. batch.name .. ' {address} is neither free nor held')
    refusal.error.details = { address = address }
    return refusal
  end
  return nil, address
end

-- An address of the pool that this workload released. Used when all others are held or cooling down.
local function pick_own(batch, ask, family)
  local from, to = '[' .. ask.workload .. ' ', '(' .. ask.workload .. '!'
  local by = batch.key .. ':' .. family .. ':by'
  for _, entry in ipairs(redis.call('ZRANGEBYLEX', by, from, to, 'LIMIT', '0', '16')) do
    local address = string.sub(entry, #ask.workload + 2)
    local is_own = batch.avoided and batch.avoided[address]
    if not is_own and redis.call('ZSCORE', batch.key .. ':' .. family .. ':free', address) then
      return address
    end
  end
  return nil
end

-- The first fresh address that the host does not have itself, if it has the very first one; nil for none.
local function pick_beyond_own(batch, family, range)
  local fresh = batch.key .. ':' .. family .. ':fresh'
  for index = 0, batch.avoided_count do
    local first, last = bounds_of(range)
    while batch.avoided[first] and first ~= last do
      first = hex_step(first, 1)
    end
    if not batch.avoided[first] then
      return first
    end
    range = redis.call('ZRANGE', fresh, index, index)[1]
    if not range then
      return nil
    end
  end
end

-- Of the free addresses that the host does not have itself, the one that was released first, and when.
local function oldest_free(batch, family)
  local free = redis.call('ZRANGE', batch.key .. ':' .. family .. ':free', '0', batch.avoided_count, 'WITHSCORES')
  for index = 1, #free, 2 do
    if not (batch.avoided and batch.avoided[free[index]]) then
      return free[index], tonumber(free[index + 1])
    end
  end
  return nil
end

-- The least recently used address that has cooled down.
local function pick_used(batch, ask, family)
  local oldest, released_at = oldest_free(batch, family)
  local wait = oldest and released_at + batch.delay_ms - batch.now
  if wait and wait <= 0 then
    return contradicted(batch, family, oldest, 'free'), oldest
  end
  if wait and wait > UNTIL_LET_GO / 2 then
    wait = LET_GO_RETRY_MS
  end
  local own = wait and pick_own(batch, ask, family)
  if own then
    return contradicted(batch, family, own, 'free'), own
  end
  return refuse('POOL_EXHAUSTED',
    'network ' .. batch.name .. ' has no IPv' .. family .. ' address left'
      .. (wait and ' that has cooled down' or batch.avoided and ' that host ' .. batch.host .. ' does not have itself'
        or ''),
    { network = batch.name, family = tonumber(family) }, wait or nil)
end

-- Picks an address of a family. Answers a refusal, or nil and an address, or nil alone for the next fresh address.
local function pick(batch, ask, family)
  local wanted = ask[family]
  local range = batch.network[NEXT[family]]
  local is_own = batch.avoided and range and batch.avoided[string.match(range, '^%x+')]
  -- Most grants end here: what is left of a range that was checked is still free.
  if wanted == '-' and range and not is_own and range == batch.memory.fresh[batch.held_keys[family]] then
    return nil
  end
  local incomplete = incomplete_held(batch, family)
  if incomplete then
    return incomplete
  end
  local asked = asked_of(wanted)
  if asked then
    return pick_named(batch, ask, family, asked)
  end
  if wanted ~= '-' then
    local reserved = string.sub(wanted, 2)
    -- Only the workload itself can hold its reserved address: then this is its second attachment.
    if not entry_of(batch.key .. ':' .. family .. ':held', reserved) then
      return pick_named(batch, ask, family, reserved)
    end
  end
  if range and not is_own then
    return held_in_next(batch, family, range)
  end
  local address = is_own and pick_beyond_own(batch, family, range)
  if address then
    return contradicted(batch, family, address, 'fresh'), address
  end
  return pick_used(batch, ask, family)
end

-- Gives the next fresh address of a family to an id, as most grants do. Adds the fields of the network that change, and
-- their values, to `changes`.
local function take_next(batch, family, id, changes)
  local place = NEXT[family]
  local range = batch.network[place]
  local dash = string.find(range, '-', 1, true)
  local address, rest = string.sub(range, 1, dash - 1), string.sub(range, dash)
  if rest == '-' .. address then
    batch.network[place] = open_next(batch.root, batch.name, family)
  else
    local known = batch.memory.fresh
    local is_known = known[batch.held_keys[family]] == range
    batch.network[place] = hex_step(address, 1) .. rest
    if is_known then
      known[batch.held_keys[family]] = batch.network[place]
    end
    changes[#changes + 1] = 'next:' .. family
    changes[#changes + 1] = batch.network[place]
  end
  redis.call('ZADD', batch.held_keys[family], '0', address .. ' ' .. id)
  return address
end

-- Gives an id an address that is not the next fresh one. Answers the text of the last release, as take does.
local function take_picked(batch, family, address, id)
  local before = take(batch.root, batch.name, family, address, id)
  if not before then
    -- The address was fresh, so the first fresh range may have changed.
    open_network(batch)
  end
  return before
end
