-- Restores leases that a host says it holds, a page at a time. Data that leases of a page share is read once. Entries
-- that can wait are written together at the end of the page.

-- A page of leases of one host. `texts`: by id, the stored text of each lease that was read or is about to be written;
-- false for none. Still to be written: `entries` and `due` of the host, `stored` leases.
local function open_page(root, host, now, leases)
  local page = { root = root, host = host, now = now, networks = {}, texts = {}, entries = {}, due = {}, stored = {} }
  local ids = {}
  for index, lease in ipairs(leases) do
    ids[index] = lease.id
  end
  if leases[1] then
    page.applied = applied_by(root, host)
    for index, text in ipairs(redis.call('HMGET', root .. ':leases', unpack(ids))) do
      page.texts[ids[index]] = text
    end
  end
  return page
end

local function write_page(page)
  if #page.entries > 0 then
    redis.call('ZADD', ids_key(page.root, page.host), unpack(page.entries))
  end
  if #page.due > 0 then
    redis.call('ZADD', due_key(page.root, page.host), unpack(page.due))
  end
  if #page.stored > 0 then
    redis.call('HSET', page.root .. ':leases', unpack(page.stored))
  end
  page.entries, page.due, page.stored = {}, {}, {}
end

-- Writes the page and forgets the texts that were read: other functions are about to change leases.
local function forget_page(page)
  write_page(page)
  page.texts = {}
end

local function lease_on(page, id)
  if page.texts[id] == nil then
    page.texts[id] = redis.call('HGET', page.root .. ':leases', id)
  end
  return lease_from(page.texts[id], id)
end

-- A network that leases of the page are in.
local function network_on(page, name)
  local known = page.networks[name]
  if not known then
    known = { key = network_key(page.root, name), held = {} }
    known.is_there = redis.call('HEXISTS', known.key, 'revision') == 1
    for _, family in ipairs(FAMILIES) do
      known.held[family] = pool_key(page.root, name, family, 'held')
    end
    page.networks[name] = known
  end
  return known
end

-- The rules of the network by family, needed to restore a lease in it. A lease that is there is kept without them.
local function rules_on(page, name, known)
  if not known.rules then
    place_all(page.root, name)
    local rules, texts = {}, redis.call('HMGET', known.key, 'family:4', 'family:6')
    for index, family in ipairs(FAMILIES) do
      rules[family] = rules_in(page.root, name, family, texts[index])
    end
    known.rules = rules
  end
  return known.rules
end

-- The holders of a lease's addresses, by family, and of its MAC; and the first fresh range of each family.
local function found_of(known, lease)
  local found = { holders = {}, next = {} }
  local is = redis.call('HMGET', known.key, 'mac:' .. lease.mac, 'next:4', 'next:6')
  found.mac, found.next['4'], found.next['6'] = is[1] or nil, is[2], is[3]
  for family, address in pairs(lease.hex) do
    found.holders[family] = entry_of(known.held[family], address)
  end
  return found
end

-- The leases that have the id, an address or the MAC of a lease, each once.
local function in_the_way(page, lease, found)
  local ids = { [lease.id] = true }
  for _, id in pairs(found.holders) do
    ids[id] = true
  end
  ids[found.mac or lease.id] = true
  local others = {}
  for id in pairs(ids) do
    -- An index entry may be left of a lease that is gone.
    others[#others + 1] = lease_on(page, id)
  end
  return others
end

-- Why a lease cannot be in the network that it names; nil if it can.
local function fault_of(page, lease, known)
  if not known.is_there then
    return 'UNKNOWN_NETWORK'
  end
  local by_family = rules_on(page, lease.network, known)
  for family, address in pairs(lease.hex) do
    local rules = by_family[family]
    local wrong = not rules and 'ADDRESS_OUT_OF_RANGE'
      or barred_by(page.root, lease.network, family, rules, address, lease.workload)
    if wrong then
      return wrong
    end
  end
  return nil
end

-- Adds the index entries that have vanished of a lease that is there.
local function find_again(root, lease, now)
  if redis.call('HEXISTS', network_key(root, lease.network), 'revision') == 0 then
    return
  end
  for family, address in pairs(lease.hex) do
    if not entry_of(pool_key(root, lease.network, family, 'held'), address) then
      -- The address was counted when it was granted.
      take(root, lease.network, family, address, lease.id)
    end
  end
  if redis.call('HEXISTS', network_key(root, lease.network), 'mac:' .. lease.mac) == 0 then
    redis.call('HSET', network_key(root, lease.network), 'mac:' .. lease.mac, lease.id)
    append(root, lease.network, now, CHANGED, lease.id)
  end
  enter_network(root, lease.host, lease.network, applied_by(root, lease.host))
  redis.call('ZADD', ids_key(root, lease.host), '0', lease.network .. ' ' .. lease.id)
  if lease.expiresAtMs then
    redis.call('ZADD', due_key(root, lease.host), lease.expiresAtMs, lease.id)
  end
end

-- Notes that the host of the page has a lease: enters the host in the network, and the lease in the host's lists.
local function note_holding(page, known, lease)
  if not known.is_entered then
    enter_network(page.root, page.host, lease.network, page.applied)
    known.is_entered = true
  end
  local entries, due = page.entries, page.due
  entries[#entries + 1] = '0'
  entries[#entries + 1] = lease.network .. ' ' .. lease.id
  if lease.expiresAtMs then
    due[#due + 1] = lease.expiresAtMs
    due[#due + 1] = lease.id
  end
end

-- Keeps a lease that is there. `found`: the holders of its addresses and MAC. In most cases no entry is missing.
local function keep_lease(page, known, lease, other, found)
  local is_found = known.is_there and other.network == lease.network and other.mac == lease.mac and found.mac == lease.id
  for family, address in pairs(other.hex) do
    is_found = is_found and lease.hex[family] == address and found.holders[family] == lease.id
  end
  if is_found then
    note_holding(page, known, other)
  else
    forget_page(page)
    find_again(page.root, other, page.now)
  end
end

local function put_back(page, known, lease, text, found)
  local root, network = page.root, lease.network
  local changes = { 'mac:' .. lease.mac, lease.id }
  for family, address in pairs(lease.hex) do
    local _, added, first_range = take_known(root, network, family, address, lease.id, found.next[family])
    keep_count(root, held_field(network, family), known.held[family], added)
    if first_range then
      changes[#changes + 1] = 'next:' .. family
      changes[#changes + 1] = first_range
    end
  end
  redis.call('HSET', known.key, unpack(changes))
  note_holding(page, known, lease)
  page.texts[lease.id] = text
  page.stored[#page.stored + 1] = lease.id
  page.stored[#page.stored + 1] = text
  append(root, network, page.now, CHANGED, lease.id)
end

local function holder_of(lease)
  return { id = lease.id, host = lease.host, generation = lease.generation }
end

-- Moves a lease to another host id. Everything else stays, also its generation.
local function move_lease(root, host, to, entry)
  local lease = lease_at(root, host, entry)
  redis.call('ZREM', ids_key(root, host), entry)
  if not lease then
    -- The lease has vanished. The entry moves, so that it is still known that the host may have it.
    redis.call('ZADD', ids_key(root, to), '0', entry)
    return
  end
  lease.host = to
  redis.call('HSET', root .. ':leases', lease.id, cjson.encode(lease))
  redis.call('ZADD', ids_key(root, to), '0', entry)
  if lease.expiresAtMs then
    redis.call('ZREM', due_key(root, host), lease.id)
    redis.call('ZADD', due_key(root, to), lease.expiresAtMs, lease.id)
  end
  append(root, lease.network, now_ms(root), CHANGED, lease.id)
end

-- Whether the ledger has a lease under the old name of its host: its data is from before the host was renamed.
local function is_under_old_name(root, lease, other)
  if other.id ~= lease.id or other.generation ~= lease.generation or other.host == lease.host then
    return false
  end
  local one = redis.call('HMGET', root .. ':host:' .. lease.host, 'machineId', 'agentId')
  local two = redis.call('HMGET', root .. ':host:' .. other.host, 'machineId', 'agentId')
  return one[1] and one[2] and one[1] == two[1] and one[2] == two[2]
end

-- JSON of the outcome of a lease, built by hand, since most have no other fields.
local function outcome_of(lease, outcome, more)
  local text = '{"id":' .. cjson.encode(lease.id) .. ',"generation":' .. cjson.encode(lease.generation)
    .. ',"outcome":"' .. outcome .. '"'
  for name, value in pairs(more or {}) do
    text = text .. ',"' .. name .. '":' .. cjson.encode(value)
  end
  return text .. '}'
end

-- Of two leases in conflict, the one with the higher generation is the later one, and stays. The host of the other is
-- asked to re-assert, and then hears of it. `text` is the lease as it is stored.
local function reassert_lease(page, lease, text)
  local root = page.root
  local known = network_on(page, lease.network)
  local found = found_of(known, lease)
  local others = in_the_way(page, lease, found)
  for _, other in ipairs(others) do
    if is_under_old_name(root, lease, other) then
      forget_page(page)
      move_lease(root, other.host, lease.host, other.network .. ' ' .. other.id)
      other.host = lease.host
    end
    if other.id == lease.id and other.generation == lease.generation and other.host == lease.host then
      memory_of(root).said[lease.id] = true
      keep_lease(page, known, lease, other, found)
      return outcome_of(lease, 'kept')
    end
    if tonumber(other.generation) >= tonumber(lease.generation) then
      return outcome_of(lease, 'fenced', { holder = holder_of(other) })
    end
  end
  local wrong = fault_of(page, lease, known)
  if wrong then
    return outcome_of(lease, 'misplaced', { reason = wrong })
  end
  memory_of(root).said[lease.id] = true
  local displaced
  if #others > 0 then
    forget_page(page)
    for _, other in ipairs(others) do
      end_lease(root, other, page.now, false)
      displaced = holder_of(other)
      if other.host ~= lease.host then
        ask_again(root, other.host)
      end
    end
    found = found_of(known, lease)
  end
  put_back(page, known, lease, text, found)
  return outcome_of(lease, 'restored', displaced and { displaced = displaced })
end

-- Answers the JSON of each outcome. If a lease cannot be read, the changes for those before it are still written.
local function reassert_leases(root, host, now, leases, texts)
  local page, outcomes = open_page(root, host, now, leases), {}
  local done, reason = pcall(function()
    for index, lease in ipairs(leases) do
      outcomes[index] = reassert_lease(page, lease, texts[index] or cjson.encode(lease))
    end
  end)
  write_page(page)
  if not done then
    error(reason)
  end
  return outcomes
end
