-- Ranges "first-last" of addresses, in zsets and lists.

-- The most arguments of one command; Lua's unpack cannot pass many more.
local MAX_ARGUMENTS = 2000

-- Adds entries to a zset, in as few commands as possible.
local function add_all(key, entries)
  local args = {}
  for index, entry in ipairs(entries) do
    args[#args + 1] = '0'
    args[#args + 1] = entry
    if #args >= MAX_ARGUMENTS or index == #entries then
      redis.call('ZADD', key, unpack(args))
      args = {}
    end
  end
end

local function remove_all(key, entries)
  for from = 1, #entries, MAX_ARGUMENTS do
    redis.call('ZREM', key, unpack(entries, from, math.min(from + MAX_ARGUMENTS - 1, #entries)))
  end
end

-- The entries of the first list that are not in the second.
local function without(list, others)
  local known, rest = {}, {}
  for _, entry in ipairs(others) do
    known[entry] = true
  end
  for _, entry in ipairs(list) do
    if not known[entry] then
      rest[#rest + 1] = entry
    end
  end
  return rest
end

local function is_same_list(list, other)
  for index = 1, math.max(#list, #other) do
    if list[index] ~= other[index] then
      return false
    end
  end
  return true
end

local function has_exactly(key, entries)
  return is_same_list(redis.call('ZRANGE', key, 0, -1), entries)
end

-- Adds 1 or -1 to fixed-width hex, eight digits at a time. Beyond the last address it starts again at zero.
local function hex_step(hex, step)
  local value = tonumber(string.sub(hex, -8), 16) + step
  local rest = string.sub(hex, 1, -9)
  if value >= 0 and value < EPOCH_UNIT then
    return rest .. string.format('%08x', value)
  end
  return (rest == '' and '' or hex_step(rest, step)) .. (step > 0 and '00000000' or 'ffffffff')
end

local function bounds_of(range)
  local dash = string.find(range, '-', 1, true)
  return string.sub(range, 1, dash - 1), string.sub(range, dash + 1)
end

-- How many addresses first to last are; for large IPv6 ranges only as exact as a number in Lua.
local function size_of(first, last)
  local size = 0
  for at = 1, #first, 8 do
    size = size * EPOCH_UNIT + tonumber(string.sub(last, at, at + 7), 16) - tonumber(string.sub(first, at, at + 7), 16)
  end
  return size + 1
end

-- The last range of a zset that begins at or before the address. "g" sorts after every hex digit.
local function range_before(key, address)
  return redis.call('ZREVRANGEBYLEX', key, '[' .. address .. '-g', '-', 'LIMIT', '0', '1')[1]
end

local function is_in(key, address)
  local range = range_before(key, address)
  if not range then
    return false
  end
  local _, last = bounds_of(range)
  return last >= address
end

-- Removes first to last from a zset of ranges, which may have all, a part or none of it.
local function cut(key, first, last)
  if first ~= last then
    -- Ranges that begin within first to last end within it, except perhaps the last.
    local within = redis.call('ZRANGEBYLEX', key, '[' .. first .. '-', '(' .. last .. '-g')
    within[#within] = nil
    remove_all(key, within)
  end
  local range = range_before(key, last)
  while range do
    local range_first, range_last = bounds_of(range)
    if range_last < first then
      return
    end
    redis.call('ZREM', key, range)
    if range_last > last then
      redis.call('ZADD', key, '0', hex_step(last, 1) .. '-' .. range_last)
    end
    if range_first < first then
      redis.call('ZADD', key, '0', range_first .. '-' .. hex_step(first, -1))
      return
    end
    range = range_before(key, last)
  end
end

-- Adds first to last to a zset of ranges that has nothing of it; ranges that touch become one.
local function join(key, first, last)
  local below = range_before(key, first)
  if below then
    local below_first, below_last = bounds_of(below)
    if hex_step(below_last, 1) == first then
      redis.call('ZREM', key, below)
      first = below_first
    end
  end
  local above = redis.call('ZRANGEBYLEX', key, '[' .. hex_step(last, 1) .. '-', '+', 'LIMIT', '0', '1')[1]
  if above then
    local above_first, above_last = bounds_of(above)
    if above_first == hex_step(last, 1) then
      redis.call('ZREM', key, above)
      last = above_last
    end
  end
  redis.call('ZADD', key, '0', first .. '-' .. last)
end

-- Adds ranges to a zset of ranges that has nothing of them. They are in order, do not touch each other, and have no
-- range of the zset between them; so only the first and the last can touch ranges of the zset.
local function join_all(key, ranges)
  local between = {}
  for index = 2, #ranges - 1 do
    between[index - 1] = ranges[index][1] .. '-' .. ranges[index][2]
  end
  add_all(key, between)
  for _, range in ipairs({ ranges[1], #ranges > 1 and ranges[#ranges] or nil }) do
    join(key, range[1], range[2])
  end
end

local function pairs_of(ranges)
  local list = {}
  for index, range in ipairs(ranges) do
    list[index] = { bounds_of(range) }
  end
  return list
end

-- The addresses of the first list of ranges that are not in the second, as ranges; both lists are in order.
local function minus(whole, holes)
  local rest = {}
  local from = 1
  for _, range in ipairs(whole) do
    local first, last = range[1], range[2]
    while holes[from] and holes[from][2] < first do
      from = from + 1
    end
    local index = from
    local covered = false
    while holes[index] and holes[index][1] <= last do
      if holes[index][1] > first then
        table.insert(rest, { first, hex_step(holes[index][1], -1) })
      end
      if holes[index][2] >= last then
        covered = true
        break
      end
      first = hex_step(holes[index][2], 1)
      index = index + 1
    end
    if not covered then
      table.insert(rest, { first, last })
    end
  end
  return rest
end
