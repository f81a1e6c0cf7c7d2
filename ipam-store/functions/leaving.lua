-- Addresses that a network no longer keeps closed, such as its last gateway. Hosts have them on their bridges until
-- they hear of the change. Each is in <root>:leaving:<f>, and in `last` of the network that has the address now, with a
-- release in the far future, so that it is granted to nobody. When every host with something of the network has applied
-- the change, the address cools down like any other.

-- The most addresses in one answer; more only if one revision opened them.
local MAX_LET_GO = 1024
-- Limits of one heartbeat: the addresses that it frees, and the revisions that it looks at for that.
local MAX_GIVEN_FREE = 128
local MAX_REVISIONS = 256

local function leaving_key(root, family)
  return root .. ':leaving:' .. family
end

-- The text in `last`, with the network in place of the workload. No workload's name begins with a dash.
local function leaving_text(network)
  return digits(UNTIL_LET_GO) .. ' -' .. network
end

-- True for the network's and the broadcast address, which no bridge ever has.
local function is_edge(rules, family, address)
  local wide = rules.last ~= hex_step(rules.first, 1) and rules.last ~= rules.first
  return wide and (address == rules.first or family == '4' and address == rules.last)
end

-- Whether hosts have to let go of any address of a network.
local function is_leaving(root, network)
  for _, family in ipairs(FAMILIES) do
    for _, entry in ipairs(redis.call('ZRANGE', leaving_key(root, family), 0, -1)) do
      if string.match(entry, '^%x+ (%S+)$') == network then
        return true
      end
    end
  end
  return false
end

-- The ranges that a network keeps closed, in order. If a library before 1.7 stored it, only ranges of one address.
local function closed_ranges(root, network, family, rules)
  if rules.closed then
    return pairs_of(redis.call('ZRANGE', pool_key(root, network, family, 'closed'), 0, -1))
  end
  local ranges = {}
  for _, range in ipairs(rules.forbidden or {}) do
    table.insert(ranges, range[1] == range[2] and range or nil)
  end
  table.sort(ranges, function(one, other) return one[1] < other[1] end)
  return ranges
end

-- The addresses that new rules open: ranges of one address, and the gateway in any case. No bridge has an address of a
-- larger range; only filters of workloads may let one through.
local function opened_by(root, network, family, rules)
  local text = redis.call('HGET', network_key(root, network), 'family:' .. family)
  local before = text and decoded(text)
  local opened, gateway = {}, before and before.gateway
  local after = pairs_of(rules and closed_of(rules.forbidden) or {})
  for _, range in ipairs(before and minus(closed_ranges(root, network, family, before), after) or {}) do
    if range[1] == range[2] and not is_edge(before, family, range[1]) then
      opened[range[1]] = true
    end
    if type(gateway) == 'string' and gateway >= range[1] and gateway <= range[2] then
      opened[gateway] = true
    end
  end
  return opened
end

-- Notes the closed addresses that a change opens, by its revision.
local function note_leaving(root, network, families, revision)
  if not redis.call('HGET', root .. ':leases', hosts_field(network)) then
    suppose_all_hosts(root, network)
  end
  if redis.call('ZCARD', hosts_key(root, network)) == 0 then
    return
  end
  for _, family in ipairs(FAMILIES) do
    local key = leaving_key(root, family)
    for address in pairs(opened_by(root, network, family, families[family])) do
      keep_count(root, '#leaving:' .. family, key, redis.call('ZADD', key, digits(revision), address .. ' ' .. network))
    end
  end
end

-- Keeps a network from granting addresses of first to last that hosts may still have.
local function keep_leaving(root, network, family, first, last)
  for _, entry in ipairs(redis.call('ZRANGE', leaving_key(root, family), 0, -1)) do
    local address, owner = string.match(entry, '^(%x+) (%S+)$')
    if address and address >= first and address <= last
      and not entry_of(pool_key(root, network, family, 'held'), address) then
      local text = entry_of(pool_key(root, network, family, 'last'), address)
      if text then
        forget(root, network, family, address, text)
      end
      remember(root, network, family, address, leaving_text(owner))
    end
  end
end

-- Those entries "address ..." whose address no host has to let go of; for the others `last` has an entry of its own.
local function not_leaving(root, family, entries)
  local leaving, rest = {}, {}
  for _, entry in ipairs(redis.call('ZRANGE', leaving_key(root, family), 0, -1)) do
    leaving[string.match(entry, '^%x+') or entry] = true
  end
  for _, entry in ipairs(entries) do
    if not leaving[string.match(entry, '^%x+')] then
      rest[#rest + 1] = entry
    end
  end
  return rest
end

-- The first entry of `leaving` that no function has made.
local function garbage_leaving(root, family)
  for _, entry in ipairs(redis.call('ZRANGE', leaving_key(root, family), 0, -1)) do
    if not string.match(entry, '^%x+ %S+$') then
      return entry
    end
  end
  return nil
end

-- Deleted networks for which the ledger has lost the list of hosts that have yet to let go.
local function gone_without_hosts(root, family)
  local found, seen = {}, {}
  for _, entry in ipairs(redis.call('ZRANGE', leaving_key(root, family), 0, -1)) do
    local owner = string.match(entry, '^%x+ (%S+)$')
    if owner and not seen[owner] then
      seen[owner] = true
      local is_gone = not redis.call('ZSCORE', root .. ':networks', owner)
        and redis.call('HEXISTS', root .. ':leases', hosts_field(owner)) == 1
      found[#found + 1] = is_gone and not knows_hosts(root, owner) and owner or nil
    end
  end
  return found
end

local function network_at(root, family, address)
  local entry = redis.call(
    'ZREVRANGEBYLEX', root .. ':subnets:' .. family, '[' .. address .. '-g', '-', 'LIMIT', 0, 1)[1]
  local last, network = string.match(entry or '', '^%x+%-(%x+) (%S+)$')
  return last and last >= address and network or nil
end

-- The revision up to which every host of a network has applied all changes. Forgotten hosts do not count.
local function applied_by_all(root, network)
  local key = hosts_key(root, network)
  if not knows_hosts(root, network) then
    local forgotten = redis.call('HEXISTS', root .. ':leases', hosts_field(network)) == 0
      and not redis.call('ZSCORE', root .. ':networks', network)
    return forgotten and math.huge or 0
  end
  while true do
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if not first[1] then
      return math.huge
    end
    local applied, known = applied_by(root, first[1]), redis.call('ZSCORE', root .. ':roster', first[1])
    if known and applied <= tonumber(first[2]) then
      return tonumber(first[2])
    elseif known then
      -- The host was entered with a lower revision (suppose_all_hosts), and has applied more since.
      redis.call('ZADD', key, digits(applied), first[1])
    else
      redis.call('ZREM', key, first[1])
      keep_count(root, hosts_field(network), key, -1)
      -- Batches remember that they have entered the host. If it comes back, it has to be entered again.
      memory_of(root).batches, memory_of(root).batch_count = {}, 0
    end
  end
end

-- By address, the networks that kept it closed and for which hosts have yet to let go of it.
local function owners_of_leaving(root, family)
  local owners = {}
  for _, entry in ipairs(redis.call('ZRANGE', leaving_key(root, family), 0, -1)) do
    local address, owner = string.match(entry, '^(%x+) (%S+)$')
    if address then
      owners[address] = owners[address] or {}
      owners[address][owner] = true
    end
  end
  return owners
end

local function give_free(root, family, entry, owners)
  local key = leaving_key(root, family)
  local removed = redis.call('ZREM', key, entry)
  keep_count(root, '#leaving:' .. family, key, -removed)
  local address, owner = string.match(entry, '^(%x+) (%S+)$')
  owners[address][owner] = nil
  local network = network_at(root, family, address)
  if network and entry_of(pool_key(root, network, family, 'last'), address) == leaving_text(owner) then
    forget(root, network, family, address, leaving_text(owner))
    -- Another network may have kept it closed, too.
    local other = next(owners[address])
    local text = other and leaving_text(other) or digits(now_ms(root)) .. ' -' .. owner
    remember(root, network, family, address, text)
  end
end

-- Frees those of `entries` (each followed by its revision) that every host has let go of, `most` at most. Answers how
-- many. `host` has applied changes up to `applied`. `known` keeps what this call has read of the family: `applied` by
-- owner, and `owners`, read when there is something to free.
local function try_to_give_free(root, family, entries, most, known, host, applied)
  local freed = 0
  for index = 1, #entries, 2 do
    local owner = string.match(entries[index], '^%x+ (%S+)$')
    if owner and not known.applied[owner] then
      if host then
        redis.call('ZADD', hosts_key(root, owner), 'XX', 'GT', digits(applied), host)
      end
      known.applied[owner] = applied_by_all(root, owner)
    end
    if owner and freed < most and known.applied[owner] >= tonumber(entries[index + 1]) then
      known.owners = known.owners or owners_of_leaving(root, family)
      give_free(root, family, entries[index], known.owners)
      freed = freed + 1
    end
  end
  return freed
end

-- Forgets the hosts of deleted networks, once each has let go.
local function forget_hosts_of_gone(root, known)
  for owner, applied in pairs(known.owners and known.applied or {}) do
    local gone_at = not redis.call('ZSCORE', root .. ':networks', owner)
      and redis.call('ZSCORE', root .. ':revised', owner)
    if gone_at and applied >= tonumber(gone_at) then
      forget_hosts(root, owner)
    end
  end
end

-- Frees everything that every host has let go of. Called when a host is no longer waited for.
local function give_free_what_is_let_go(root)
  for _, family in ipairs(FAMILIES) do
    local known = { applied = {} }
    try_to_give_free(root, family, redis.call('ZRANGE', leaving_key(root, family), 0, -1, 'WITHSCORES'), math.huge, known)
    forget_hosts_of_gone(root, known)
  end
end

-- The addresses that a host has yet to let go of because of changes after a revision: JSON of each {network, address}.
-- And the revision up to which they are complete, nil if none is left out: a host counts as having applied a change
-- only when it was told all of it.
local function to_let_go(root, host, after)
  local items, from, to = {}, '(' .. digits(after or applied_by(root, host)), '+inf'
  for _, family in ipairs(FAMILIES) do
    local last = redis.call('ZRANGEBYSCORE', leaving_key(root, family), from, to, 'WITHSCORES',
      'LIMIT', MAX_LET_GO - 1, 1)
    to = last[2] or to
  end
  for _, family in ipairs(FAMILIES) do
    for _, entry in ipairs(redis.call('ZRANGEBYSCORE', leaving_key(root, family), from, to)) do
      local address, network = string.match(entry, '^(%x+) (%S+)$')
      items[#items + 1] = address and '{"network":' .. cjson.encode(network) .. ',"address":"' .. address .. '"}'
    end
  end
  return items, to ~= '+inf' and to or nil
end

-- Frees addresses that a host has let go of by applying the changes after one revision and up to another. Answers up to
-- which revision this is done.
local function give_free_between(root, host, family, after, applied)
  local key, known, freed = leaving_key(root, family), { applied = {} }, 0
  for _ = 1, MAX_REVISIONS do
    local entry = redis.call('ZRANGEBYSCORE', key, '(' .. digits(after), digits(applied), 'WITHSCORES', 'LIMIT', 0, 1)
    local entries = entry[1] and redis.call('ZRANGEBYSCORE', key, entry[2], entry[2], 'WITHSCORES') or {}
    freed = freed + try_to_give_free(root, family, entries, MAX_GIVEN_FREE - freed, known, host, applied)
    if freed == MAX_GIVEN_FREE or not entry[1] then
      after = entry[1] and after or applied
      break
    end
    after = tonumber(entry[2])
  end
  forget_hosts_of_gone(root, known)
  return after
end

-- Notes the revision up to which a host has applied all changes, and let go of the addresses that they opened. Costs no
-- command if the host says the same as before.
local function note_applied(root, host, applied)
  local memory = memory_of(root)
  if not applied or memory.applied[host] == applied then
    return
  end
  memory.applied[host] = applied
  local before = applied_by(root, host)
  if applied <= before then
    -- A lower revision than before: the ledger was emptied, and revisions began anew.
    if applied < before then
      redis.call('HSET', root .. ':host:' .. host, 'applied', digits(applied))
    end
    return
  end
  local reached = applied
  for _, family in ipairs(FAMILIES) do
    reached = math.min(reached, give_free_between(root, host, family, before, applied))
  end
  if reached < applied then
    -- The next heartbeat does the rest.
    memory.applied[host] = nil
  end
  redis.call('HSET', root .. ':host:' .. host, 'applied', digits(reached))
end
