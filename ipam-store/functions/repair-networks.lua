-- Repairs of networks. `definition`: the network's definition of that revision, as an agent has parsed it.

-- The rules of a family from the definition; nil if the network has another revision now.
local function proven_rules(root, ask)
  local revision = redis.call('HGET', network_key(root, ask.network), 'revision')
  if not ask.definition or tonumber(revision or nil) ~= ask.revision then
    return nil
  end
  return ask.definition.families[ask.family]
end

-- Repairs an address that `by` or `free` lists as released and `last` does not. It counts as released if nobody holds
-- it and it is not fresh; else the entry is removed.
local function salvage(root, network, family, address, workload)
  local free = pool_key(root, network, family, 'free')
  local by = pool_key(root, network, family, 'by')
  if not entry_of(pool_key(root, network, family, 'last'), address) then
    local is_fresh = is_in(pool_key(root, network, family, 'fresh'), address)
      or is_next(root, network, family, address)
    if not is_fresh and not entry_of(pool_key(root, network, family, 'held'), address) then
      local at = redis.call('ZSCORE', free, address) or digits(now_ms(root))
      remember(root, network, family, address, at .. ' ' .. workload)
      return
    end
    redis.call('ZREM', free, address)
  end
  redis.call('ZREM', by, workload .. ' ' .. address)
end

local function rebuild(root, ask)
  local network, family = ask.network, ask.family
  local rules = proven_rules(root, ask)
  local held = pool_key(root, network, family, 'held')
  if not rules or missing_from(root, held_field(network, family), held) > 0 then
    return false
  end
  for _, entry in ipairs(redis.call('ZRANGE', pool_key(root, network, family, 'by'), 0, -1)) do
    local workload, address = string.match(entry, '^(%S+) (%x+)$')
    if address then
      salvage(root, network, family, address, workload)
    end
  end
  for _, address in ipairs(redis.call('ZRANGE', pool_key(root, network, family, 'free'), 0, -1)) do
    if string.match(address, '^%x+$') then
      salvage(root, network, family, address, '-')
    end
  end
  keep_leaving(root, network, family, rules.first, rules.last)
  rebuild_pool(root, network, family, rules.allowed)
  return true
end

REPAIRS['pool differs'] = rebuild
REPAIRS['lost'] = rebuild

-- `repair` itself goes on with the unfinished change, and says in `more` whether work is left.
REPAIRS['network unfinished'] = function()
  return true
end

REPAIRS['network unlisted'] = function(root, ask)
  if redis.call('HEXISTS', network_key(root, ask.network), 'revision') == 0 then
    return false
  end
  redis.call('ZADD', root .. ':networks', '0', ask.network)
  return true
end

REPAIRS['network missing'] = function(root, ask)
  local held = redis.call('HMGET', network_key(root, ask.network), 'revision', 'network')
  if tonumber(held[1] or nil) and held[2] and decoded(held[2]) then
    return true
  end
  if not ask_hosts(root, 'network ' .. ask.network) then
    return false
  end
  -- No host that was heard knows the network. Another host may know it, and have its gateway.
  if is_yet_to_say(root, ask.network) or may_be_held(root, ask.network) or ids_in(root, ask.network, 1)[1] then
    return false
  end
  begin_deletion(root, ask.network, redis.call('HINCRBY', root .. ':meta', 'revision', 1))
  return true
end

REPAIRS['networks missing'] = function(root)
  local networks = root .. ':networks'
  if missing_from(root, '#networks', networks) > 0 then
    if not ask_hosts(root, 'networks') then
      return false
    end
    redis.call('HSET', root .. ':leases', '#networks', redis.call('ZCARD', networks))
  end
  return true
end

-- Nobody knows which other hosts have something of the network, so all are entered.
REPAIRS['hosts missing'] = function(root, ask)
  suppose_all_hosts(root, ask.network)
  give_free_what_is_let_go(root)
  return true
end

local function have_all_applied(root, revision)
  for _, host in ipairs(redis.call('ZRANGE', root .. ':roster', 0, -1)) do
    if applied_by(root, host) < revision then
      return false
    end
  end
  return true
end

-- It is lost which addresses hosts have to let go of. They have let go of all once each has applied all changes so far.
REPAIRS['leaving missing'] = function(root, ask)
  local key = leaving_key(root, ask.family)
  if not have_all_applied(root, meta_of(root).revision) then
    return false
  end
  local address, text = string.match(ask.entry or '', '^(%x+) (.+)$')
  if address and entry_of(pool_key(root, ask.network, ask.family, 'last'), address) == text then
    local _, owner = time_and_workload(text)
    forget(root, ask.network, ask.family, address, text)
    remember(root, ask.network, ask.family, address, digits(now_ms(root)) .. ' ' .. owner)
  elseif not address then
    local garbage = garbage_leaving(root, ask.family)
    while garbage do
      redis.call('ZREM', key, garbage)
      garbage = garbage_leaving(root, ask.family)
    end
    redis.call('HSET', root .. ':leases', '#leaving:' .. ask.family, redis.call('ZCARD', key))
  end
  return true
end

REPAIRS['revised differs'] = function(root, ask)
  local revision = redis.call('HGET', network_key(root, ask.network), 'revision')
  if not tonumber(revision or nil) then
    return false
  end
  redis.call('ZADD', root .. ':revised', revision, ask.network)
  return true
end

-- Nobody knows which deletions are missing: a host that has not heard of the last change reads all networks.
REPAIRS['revised missing'] = function(root)
  redis.call('HSET', root .. ':meta', 'revisedFrom', digits(meta_of(root).revision))
  redis.call('HSET', root .. ':leases', '#revised', redis.call('ZCARD', root .. ':revised'))
  return true
end

REPAIRS['subnets missing'] = function(root, ask)
  local field, subnets = '#subnets:' .. ask.family, root .. ':subnets:' .. ask.family
  list_deletions(root, ask.family)
  if missing_from(root, field, subnets) > 0 then
    if not ask_hosts(root, field) then
      return false
    end
    redis.call('HSET', root .. ':leases', field, redis.call('ZCARD', subnets))
  end
  return true
end

REPAIRS['meta missing'] = function(root)
  local revision = redis.call('HGET', root .. ':meta', 'revision')
  if not tonumber(revision or nil) or not tonumber(redis.call('HGET', root .. ':meta', 'roster') or nil) then
    ask_hosts(root, 'meta')
  end
  return false
end

REPAIRS['network differs'] = function(root, ask)
  local key = network_key(root, ask.network)
  if not ask.definition or tonumber(redis.call('HGET', key, 'revision') or nil) ~= ask.revision then
    return false
  end
  store_definition(root, ask.definition)
  for _, family in ipairs(FAMILIES) do
    local rules = ask.definition.families[family]
    if rules then
      store_rules(root, ask.network, family, rules)
    else
      redis.call('HDEL', key, 'family:' .. family)
    end
  end
  return true
end

REPAIRS['subnet missing'] = function(root, ask)
  local rules = proven_rules(root, ask)
  if not rules or overlapping(root, ask.family, ask.network, rules.first, rules.last) then
    return false
  end
  redis.call('ZADD', root .. ':subnets:' .. ask.family, '0', rules.first .. '-' .. rules.last .. ' ' .. ask.network)
  return true
end

REPAIRS['subnet stray'] = function(root, ask)
  local rules = decoded(redis.call('HGET', network_key(root, ask.network), 'family:' .. ask.family) or '')
  if ask.network == '-' or rules and ask.entry ~= rules.first .. '-' .. rules.last .. ' ' .. ask.network then
    redis.call('ZREM', root .. ':subnets:' .. ask.family, ask.entry)
    return true
  end
  return false
end

REPAIRS['by missing'] = function(root, ask)
  local text = entry_of(pool_key(root, ask.network, ask.family, 'last'), ask.address)
  if not text or entry_of(pool_key(root, ask.network, ask.family, 'held'), ask.address) then
    return false
  end
  remember(root, ask.network, ask.family, ask.address, text)
  return true
end
REPAIRS['free missing'] = REPAIRS['by missing']

REPAIRS['by stray'] = function(root, ask)
  local by = pool_key(root, ask.network, ask.family, 'by')
  if not redis.call('ZSCORE', by, ask.entry) then
    return true
  end
  local workload, address = string.match(ask.entry, '^(%S+) (%x+)$')
  if address then
    salvage(root, ask.network, ask.family, address, workload)
  else
    redis.call('ZREM', by, ask.entry)
  end
  return true
end

REPAIRS['free stray'] = function(root, ask)
  local free = pool_key(root, ask.network, ask.family, 'free')
  if not string.match(ask.address, '^%x+$') then
    redis.call('ZREM', free, ask.address)
  elseif redis.call('ZSCORE', free, ask.address) then
    salvage(root, ask.network, ask.family, ask.address, '-')
  end
  return true
end

REPAIRS['last unreadable'] = function(root, ask)
  if string.match(ask.entry, '^%x+ %d+ %S+$') then
    return false
  end
  redis.call('ZREM', pool_key(root, ask.network, ask.family, 'last'), ask.entry)
  return true
end

REPAIRS['gone unreadable'] = function(root, ask)
  if string.match(ask.entry, '^%x+ %d+ %S+$') then
    return false
  end
  redis.call('ZREM', root .. ':gone:' .. ask.family, ask.entry)
  return true
end

REPAIRS['held unreadable'] = function(root, ask)
  if string.match(ask.entry, '^%x+ %S+$') then
    return false
  end
  redis.call('ZREM', pool_key(root, ask.network, ask.family, 'held'), ask.entry)
  return true
end

-- Counts anew, if at least as many addresses are held as hosts have leases in the network.
REPAIRS['count'] = function(root, ask)
  local key = network_key(root, ask.network)
  local leases, most = 0, 0
  for _, host in ipairs(redis.call('ZRANGE', root .. ':roster', 0, -1)) do
    leases = leases + redis.call('ZLEXCOUNT', ids_key(root, host),
      '[' .. ask.network .. ' ', '(' .. ask.network .. '!')
  end
  local has_family = false
  for _, family in ipairs(FAMILIES) do
    most = math.max(most, redis.call('ZCARD', pool_key(root, ask.network, family, 'held')))
    has_family = has_family or redis.call('HEXISTS', key, 'family:' .. family) == 1
  end
  if has_family and most < leases then
    return false
  end
  for _, family in ipairs(FAMILIES) do
    memory_of(root).counted[held_field(ask.network, family)] = nil
    redis.call('HSET', root .. ':leases', held_field(ask.network, family),
      redis.call('ZCARD', pool_key(root, ask.network, family, 'held')))
  end
  redis.call('HDEL', key, 'unchecked')
  return true
end

local function drop_mistyped(key, read)
  local done, reason = pcall(read, key)
  local text = not done and (type(reason) == 'table' and reason.err or tostring(reason)) or ''
  if string.find(text, 'WRONGTYPE', 1, true) then
    redis.call('DEL', key)
  end
end

-- Deletes keys of a type that no function makes. After that they are keys that have vanished.
local function drop_unreadable(root, ask)
  local zsets = { root .. ':networks', root .. ':roster', root .. ':hosts', root .. ':suspects', root .. ':joining',
    root .. ':revised', root .. ':changed' }
  local hashes = { root .. ':leases', root .. ':meta' }
  for _, family in ipairs(FAMILIES) do
    table.insert(zsets, root .. ':subnets:' .. family)
    table.insert(zsets, root .. ':gone:' .. family)
    table.insert(zsets, leaving_key(root, family))
    for _, part in ipairs(ask.network and POOL_PARTS or {}) do
      table.insert(zsets, pool_key(root, ask.network, family, part))
    end
  end
  if ask.network then
    table.insert(hashes, network_key(root, ask.network))
    table.insert(zsets, hosts_key(root, ask.network))
  end
  if ask.host then
    table.insert(hashes, root .. ':host:' .. ask.host)
    table.insert(zsets, ids_key(root, ask.host))
    table.insert(zsets, due_key(root, ask.host))
  end
  for _, key in ipairs(zsets) do
    drop_mistyped(key, function(zset)
      redis.call('ZCARD', zset)
    end)
  end
  for _, key in ipairs(hashes) do
    drop_mistyped(key, function(hash)
      redis.call('HEXISTS', hash, '-')
    end)
  end
end

-- repair, with a difference as audit answers it -> {repaired, more}; more: a change of its network is unfinished
local function repair(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  if ask.definition then
    flat_definition(ask.definition)
  end
  if ask.what == 'unreadable' then
    -- Done even while the ledger is not armed: it cannot hear hosts before its keys can be read.
    drop_unreadable(root, ask)
    return reply_of({ repaired = false, more = false })
  end
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  local work = REPAIRS[ask.what]
  local repaired = work and work(root, ask) or false
  return reply_of({ repaired = repaired, more = ask.network and repaired and not finish_some(root, ask.network) or false })
end

redis.register_function({ function_name = 'volt1_repair', callback = readable(repair), flags = { 'allow-oom' } })
