-- The rules of a definition for the addresses of one family. They are sent with the definition, kept beside it, and
-- looked up for single addresses, so that only a put walks the lists of a definition.

-- An agent of this version sends its lists flat: allowed ["first-last"…], reserved ["address workload"…] and forbidden
-- ["first-last path"…], each in order. Changes the lists of an earlier agent, pairs and a map, to that form, in place.
local function flat_rules(rules)
  if rules.flat then
    return rules
  end
  local reserved = {}
  for address, workload in pairs(rules.reserved) do
    reserved[#reserved + 1] = address .. ' ' .. workload
  end
  rules.reserved = reserved
  for index, range in ipairs(rules.allowed) do
    rules.allowed[index] = range[1] .. '-' .. range[2]
  end
  for index, range in ipairs(rules.forbidden) do
    rules.forbidden[index] = range[1] .. '-' .. range[2] .. ' ' .. range[3]
  end
  table.sort(rules.reserved)
  table.sort(rules.forbidden)
  rules.flat = true
  -- An earlier agent does not call again to finish an exchange that was put off.
  rules.at_once = true
  return rules
end

local function flat_definition(definition)
  for _, rules in pairs(definition.families) do
    flat_rules(rules)
  end
  return definition
end

-- The ranges of `forbidden`. Ranges that overlap or touch become one, so that one lookup finds a closed address.
local function closed_of(forbidden)
  local closed, first, last = {}, nil, nil
  for _, entry in ipairs(forbidden) do
    local from, to = bounds_of(string.sub(entry, 1, string.find(entry, ' ', 1, true) - 1))
    if last and from <= hex_step(last, 1) and last < hex_step(last, 1) then
      last = to > last and to or last
    else
      closed[#closed + 1] = last and first .. '-' .. last
      first, last = from, to
    end
  end
  closed[#closed + 1] = last and first .. '-' .. last
  return closed
end

local function store_rules(root, name, family, rules)
  local closed = closed_of(rules.forbidden)
  -- Never put off, since the next change is compared with it to find what it opens. It has a thousand ranges at most.
  place(root, name, family, 'closed', closed, true)
  place(root, name, family, 'reserved', rules.reserved, rules.at_once)
  redis.call('HSET', network_key(root, name), 'family:' .. family, string.format(
    '{"first":"%s","last":"%s","gateway":%s,"size":%s,"poolSize":%s,"reserved":%d,"closed":%d}',
    rules.first, rules.last, cjson.encode(rules.gateway or cjson.null), digits(rules.size), digits(rules.poolSize),
    #rules.reserved, #closed))
end

-- The rules of a family from their text, nil for none; fails if they cannot be read, or if some have vanished.
local function rules_in(root, name, family, text)
  if not text then
    return nil
  end
  local rules = decoded(text) or error('the rules of network ' .. name)
  for _, part in ipairs(rules.closed and { 'reserved', 'closed' } or {}) do
    if redis.call('ZCARD', pool_key(root, name, family, part)) ~= rules[part] then
      error('the `' .. part .. '` addresses of network ' .. name)
    end
  end
  return rules
end

-- As barred_by, for rules of a library before 1.7: `reserved`, `forbidden` and perhaps `owners` are in them.
local function barred_by_old(rules, address, workload)
  for _, range in ipairs(rules.forbidden or {}) do
    if address >= range[1] and address <= range[2] then
      return 'ADDRESS_OUT_OF_RANGE'
    end
  end
  if not rules.owner_of then
    rules.owner_of = {}
    for index, owner in ipairs(rules.owners or {}) do
      rules.owner_of[rules.reserved[index]] = owner
    end
  end
  return (rules.owner_of[address] or workload) ~= workload and 'ADDRESS_IN_USE' or nil
end

-- Why a workload cannot have an address, by the rules of the family; nil if it can.
local function barred_by(root, name, family, rules, address, workload)
  if address < rules.first or address > rules.last then
    return 'ADDRESS_OUT_OF_RANGE'
  end
  if not rules.closed then
    return barred_by_old(rules, address, workload)
  end
  if is_in(pool_key(root, name, family, 'closed'), address) then
    return 'ADDRESS_OUT_OF_RANGE'
  end
  local owner = rules.reserved > 0 and entry_of(pool_key(root, name, family, 'reserved'), address)
  return owner and owner ~= workload and 'ADDRESS_IN_USE' or nil
end

-- True if the stored rules are those of a definition.
local function has_rules(root, name, family, rules)
  local is = decoded(redis.call('HGET', network_key(root, name), 'family:' .. family) or '')
  if not (is and is.first == rules.first and is.last == rules.last and is.size == rules.size
    and is.poolSize == rules.poolSize) then
    return false
  end
  if is.closed then
    return is.reserved == #rules.reserved
      and has_exactly(pool_key(root, name, family, 'reserved'), rules.reserved)
      and has_exactly(pool_key(root, name, family, 'closed'), closed_of(rules.forbidden))
  end
  if type(is.reserved) ~= 'table' then
    return false
  end
  local owners = {}
  for _, entry in ipairs(rules.reserved) do
    owners[entry] = true
  end
  -- An earlier library may have stored no owners.
  for index, owner in ipairs(is.owners or {}) do
    if not owners[tostring(is.reserved[index]) .. ' ' .. tostring(owner)] then
      return false
    end
  end
  return true
end
