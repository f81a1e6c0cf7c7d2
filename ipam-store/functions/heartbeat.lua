-- One call a period says that a host lives, and answers what it has to do.
local MAX_NAMED = 64

local function encoded(list, most)
  local items = {}
  for index = 1, math.min(#list, most or #list) do
    items[index] = cjson.encode(list[index])
  end
  return json_list(items)
end

-- heartbeat {host, machineId, agentId?, yieldsTo?, bootId, periodMs?, suspectMs, windowMs?, newFleet,
--            seen: {generation (text), revision, roster, hosts: [host…]}, follows?: {network: position…}}
-- -> {nowMs (text), state, unfit?, mayAcquire, reassert, epoch (text), before?, rebooted, began, ended, awaiting: [host…],
--     moved: [network…], missed: [host…], fallen: [host…], reclaimed: [lease…], due: [{id, generation (text)}…],
--     seen: {generation (text), revision, roster, hosts?: [host…]}}; of an unclaimed ledger {nowMs, state, asks}
-- yieldsTo: what the last HOST_CONFLICT said so in its details.
-- state is armed, arming, recovering or unclaimed; unfit: why the server may grant nothing. asks: this host
-- finds out whether the fleet is new. before: what the host was, live or suspect. began, ended: this call has begun, or ended, a recovery; missed: whom that did not wait for.
-- moved: those that the host follows and in which something has happened since. fallen: whom this call has made
-- suspect. hosts: of an armed ledger, where the roster is not the one that the reporter has seen. Costs the same
-- whatever the host holds.
local function heartbeat(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local now = now_ms(root)
  local seen = ask.seen
  seen.generation = tonumber(seen.generation)
  local session = root .. ':host:' .. ask.host
  local known = known_of(root, ask.host)
  local conflict = conflict_with(root, ask, known, now)
  if conflict then
    return reply_of(conflict)
  end
  local second
  now, second = keep_time(root)
  if second then
    drop_gone(root, now)
  end
  look_at_server(root, now)
  local meta = meta_of(root)
  local memory = memory_of(root)
  if memory.generation and memory.generation ~= meta.generation then
    memories[root] = nil
  end
  local began = false
  if seen.generation > meta.generation or seen.revision > meta.revision or seen.roster > meta.roster then
    began = take_for_lost(root, seen, meta, now, ask.suspectMs)
  elseif meta.generation == 0 then
    if not ask.newFleet then
      return '{"nowMs":"' .. digits(now) .. '","state":"unclaimed","asks":'
        .. tostring(is_asker(root, ask.host, now)) .. '}'
    end
    meta.generation = EPOCH_UNIT
    redis.call('HSET', root .. ':leases', GENERATION, digits(EPOCH_UNIT))
    redis.call('HSET', root .. ':meta', 'revision', 0, 'roster', 0)
  end
  local epoch = digits(epoch_of(meta.generation))
  note_beat(root, now, ask.suspectMs)
  local before = enter(root, ask, now)
  memory = memory_of(root)
  note_identity(root, ask, known, now)
  memory.heard[ask.host] = who_of(ask)
  local ended, awaiting, missed = false, nil, nil
  if not memory.generation then
    awaiting, missed = try_to_arm(root, meta, now, ask.windowMs)
    ended = meta.lost and not awaiting
  end
  local fallen, reclaimed = {}, {}
  if memory.generation then
    vouch(root, ask)
    open_session(root, ask.host, who_of(ask), epoch)
    fallen, reclaimed = sweep(root, now)
  end
  local roster = redis.call('HGET', root .. ':meta', 'roster')
  local hosts = ''
  if memory.generation and tonumber(roster) ~= seen.roster then
    hosts = ',"hosts":' .. encoded(redis.call('ZRANGE', root .. ':hosts', 0, -1))
  end
  local state = memory.generation and 'armed' or meta.lost and 'recovering' or 'arming'
  return '{"nowMs":"' .. digits(now) .. '","state":"' .. state
    .. '","unfit":' .. cjson.encode(memory.unfit or cjson.null)
    .. ',"mayAcquire":' .. tostring(memory.sessions[ask.host] ~= nil and not memory.unfit)
    .. ',"reassert":' .. tostring(redis.call('HGET', session, 'asserted') ~= epoch)
    .. ',"epoch":"' .. epoch
    .. '","before":' .. cjson.encode(before or cjson.null)
    .. ',"rebooted":' .. tostring((known.bootId or ask.bootId) ~= ask.bootId)
    .. ',"began":' .. tostring(began)
    .. ',"ended":' .. tostring(ended)
    .. ',"awaiting":' .. encoded(awaiting or {}, MAX_NAMED)
    .. ',"missed":' .. encoded(missed or {}, MAX_NAMED)
    .. ',"moved":' .. encoded(memory.generation and moved_of(root, ask.follows or {}) or {})
    .. ',"fallen":' .. encoded(fallen)
    .. ',"reclaimed":' .. encoded(reclaimed)
    .. ',"due":' .. json_list(due_of(root, ask.host, now))
    .. ',"seen":{"generation":"' .. digits(meta.generation)
    .. '","revision":' .. digits(meta.revision) .. ',"roster":' .. roster .. hosts .. '}}'
end

redis.register_function({ function_name = 'volt1_heartbeat', callback = readable(heartbeat), flags = { 'allow-oom' } })
