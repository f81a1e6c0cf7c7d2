-- Followers of a network read a snapshot of its leases, then its log. While the ledger is not armed they read nothing
-- and keep what they have: a lease that a server has lost has not ended.
local SNAPSHOT_FIELDS = '100'
local MAX_READ = 100

-- Why the caller may not run commands for logs: users that were made for an earlier version do not have the right.
local function no_logs(reply)
  return 'no change logs (' .. reply.err .. '): the user lacks rights that docs/ledger.md lists'
end

local function is_mistyped(reply)
  return reply.err and string.find(reply.err, 'WRONGTYPE', 1, true)
end

-- The position at which a follower begins: a refusal, or nil and the id of the log's last entry. A network without a
-- log gets one, which has all changes from now on.
local function open_log(root, network)
  local position, unread = log_position(root, network)
  if position ~= '' then
    return nil, position
  end
  if unread and not is_mistyped(unread) then
    return refuse('STORE_UNAVAILABLE', no_logs(unread))
  end
  redis.call('DEL', log_key(root, network))
  local began = redis.pcall('XADD', log_key(root, network), next_entry_id(root, now_ms(root)), 'began', '-')
  if type(began) == 'table' then
    return refuse('STORE_UNAVAILABLE', no_logs(began))
  end
  return nil, began
end

-- The JSON of the lease that an id has in a network; nil for none.
local function lease_in(root, network, id)
  local lease = lease_of(root, id)
  return lease and lease.network == network and cjson.encode(lease) or nil
end

-- follow {network, cursor?} -> {position, revision, leases: [lease…], cursor}, a page of the leases of a network; the
-- first page has the position of the log. If there is no position, the network does not exist. Leases that come or go
-- meanwhile may be missing or not: the log has them, from the position on.
local function follow(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local key = network_key(root, ask.network)
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  local held = redis.call('HMGET', key, 'revision', 'unchecked')
  if not held[1] and not has_remains(root, ask.network) then
    return '{"leases":[]}'
  end
  if not tonumber(held[1] or nil) or held[2] then
    return reply_of(contradiction('parts of network ' .. ask.network .. ' have vanished'))
  end
  local refusal, position
  if not ask.cursor then
    refusal, position = open_log(root, ask.network)
  end
  if refusal then
    return reply_of(refusal)
  end
  -- Each lease of the network has one field mac:<mac>.
  local page = redis.call('HSCAN', key, ask.cursor or '0', 'MATCH', 'mac:*', 'COUNT', SNAPSHOT_FIELDS)
  local leases = {}
  for index = 2, #page[2], 2 do
    table.insert(leases, lease_in(root, ask.network, page[2][index]))
  end
  return '{"position":' .. cjson.encode(position or cjson.null) .. ',"revision":' .. held[1]
    .. ',"leases":' .. json_list(leases)
    .. ',"cursor":' .. cjson.encode(page[1] ~= '0' and page[1] or cjson.null) .. '}'
end

-- log {network, after} -> {position, leases: [lease…], gone: [id…], revision?, more}: the present state of all that has
-- changed after the entry `after`, up to the entry `position`; {gap: true} if the entry `after` is not there, so that
-- others may be missing, too.
local function read_log(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local closed = unarmed(root)
  if closed then
    return reply_of(closed)
  end
  local found = redis.pcall('XRANGE', log_key(root, ask.network), ask.after, '+', 'COUNT', MAX_READ + 1)
  if found.err and not is_mistyped(found) then
    return reply_of(refuse('STORE_UNAVAILABLE', no_logs(found)))
  end
  if not (found[1] and found[1][1] == ask.after) then
    return '{"gap":true}'
  end
  local leases, gone, told, revision = {}, {}, {}, 'null'
  for index = 2, #found do
    local about, value = found[index][2][1], found[index][2][2]
    if about == EDITED then
      revision = value
    elseif about == CHANGED and not told[value] then
      told[value] = true
      local lease = lease_in(root, ask.network, value)
      table.insert(lease and leases or gone, lease or cjson.encode(value))
    end
  end
  return '{"gap":false,"position":"' .. found[#found][1] .. '","leases":' .. json_list(leases)
    .. ',"gone":' .. json_list(gone) .. ',"revision":' .. revision
    .. ',"more":' .. tostring(#found > MAX_READ) .. '}'
end

-- The networks of {network: position…} whose log has another last entry. An empty position: the network did not exist.
local function moved_of(root, follows)
  local names = {}
  for network, position in pairs(follows) do
    local last = log_position(root, network)
    if last ~= position or last == '' and redis.call('EXISTS', network_key(root, network)) == 1 then
      table.insert(names, network)
    end
  end
  return names
end

-- logs -> {unlogged?}: why the caller cannot write or read logs. Then its next change of a network deletes its log.
local function may_log(keys)
  local key = log_key(keys[1], '-')
  for _, reply in ipairs({
    redis.pcall('XADD', key, 'NOMKSTREAM', 'MAXLEN', '~', MAX_LOG, '*', CHANGED, '-') or {},
    redis.pcall('XRANGE', key, '-', '+', 'COUNT', '1'),
    redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', '1'),
  }) do
    if type(reply) == 'table' and reply.err then
      return cjson.encode({ unlogged = no_logs(reply) })
    end
  end
  return '{}'
end

redis.register_function('volt1_follow', readable(follow))
redis.register_function({ function_name = 'volt1_log', callback = readable(read_log), flags = { 'no-writes' } })
redis.register_function({ function_name = 'volt1_logs', callback = may_log, flags = { 'allow-oom' } })
