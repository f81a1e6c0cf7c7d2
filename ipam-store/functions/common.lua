-- The ledger. All keys hang from one root, KEYS[1] of every function; it holds the hash tag, so all lie in
-- one slot. Addresses are fixed-width lower-case hex, 8 digits or 32: they sort as text, and no number of
-- Lua's has to hold an IPv6 address. Times are milliseconds of the ledger's clock (clock.lua). <f> is 4 or 6.
--
--   <root>:meta              hash  revision: number of the last change of any network; roster: number of the last
--                                  change of the list of hosts; pending: changes of that list since then, while the
--                                  ledger is not armed; changedFrom: `changed` has all changes after this roster;
--                                  lost: 1 during a recovery; gone:<f>: until when entries of the key of that name
--                                  may cool down; clockMs: the highest time that was told, to a second
--   <root>:networks          zset  names, by name
--   <root>:revised           zset  names of networks, also of deleted ones, by the revision of their last change;
--                                  revisedFrom in meta: changes up to that revision may be missing here
--   <root>:subnets:<f>       zset  "first-last network": no two overlap
--   <root>:leases            hash  attachment id -> JSON of the lease; #generation: the last one given;
--                                  #networks, #revised, #subnets:<f>, #leaving:<f>, #hosts:<n>, #held:<f>:<n>:
--                                  how many entries those keys have, to notice a key that has vanished, in whole or
--                                  in part, before it is trusted
--   <root>:roster            zset  names of all hosts, by name
--   <root>:hosts             zset  live hosts, by the time at which silence makes them suspect
--   <root>:suspects          zset  suspect hosts, by the time at which they became suspect
--   <root>:joining           zset  hosts that no other host vouches for yet, by the first roster that has them
--   <root>:changed           zset  hosts by the roster of their last change: entered, fallen silent, forgotten
--   <root>:host:<h>          hash  machineId, agentId, bootId, seenMs; asserted: the epoch for which it re-asserted;
--                                  tell: the list of hosts (roster, digest) that it has yet to tell after a loss;
--                                  bootIds: its last boots; sureMs: from then on the boot before bootId is silent for
--                                  certain; clones: boots of two machines that call themselves the host; ousted: boots
--                                  that are not the host, as an operator has decided; applied: the revision up to
--                                  which it has applied changes of networks
--   <root>:host:<h>:ids      zset  "network id" of each lease that the host holds
--   <root>:host:<h>:due      zset  ids of leases of the host that expire, by time
--   <root>:gone:<f>          zset  entries of `last` of deleted networks, until they have cooled down
--   <root>:leaving:<f>       zset  "address network": hosts may still have this address, which the network kept
--                                  closed, by the revision that opened it
--   <root>:net:<n>           hash  network (JSON), digest, fixed, revision, type, delayMs, reclaimMs; for each family
--                                  family:<f> (JSON of its rules: subnet, gateway, sizes, and the number of entries of
--                                  reserved and closed; the entries themselves, if a library before 1.7 stored it)
--                                  and next:<f> ("first-last": the first fresh range);
--                                  for each MAC of a lease mac:<mac>: the id; unfinished: "sorting" or "deleting" while
--                                  that takes more calls; placing:<f>:<part>: entries that are still to be placed in
--                                  that key of those below (placing.lua); unchecked: 1 in a network that had vanished
--                                  and was restored, until the audit has seen that every lease is found in it
--   <root>:net:<n>:hosts     zset  hosts that have something of the network, by the revision that they have applied
--   <root>:net:<n>:log       stream  changes of leases and of the network (log.lua); may be missing
--   <root>:net:<n>:<f>:allowed  zset  "first-last": what the pool gives out; neighbours never touch
--   <root>:net:<n>:<f>:reserved zset  "address workload": given to that workload alone
--   <root>:net:<n>:<f>:closed   zset  "first-last": never given out; neighbours never touch
--   <root>:net:<n>:<f>:unsorted zset  "first-last": addresses that are still to be sorted into the keys below
--   <root>:net:<n>:<f>:fresh    zset  "first-last": allowed addresses that were never used, without next:<f>
--   <root>:net:<n>:<f>:held     zset  "address id"
--   <root>:net:<n>:<f>:last     zset  "address time workload": released then by that workload, and not held since
--   <root>:net:<n>:<f>:by       zset  "workload address": the same, found by workload
--   <root>:net:<n>:<f>:free     zset  addresses of `last` that the pool gives out, by time: least recently used first
--
-- An allowed address is in exactly one of fresh, free and held, once it is sorted. Everything is found by name, range
-- or rank: no function walks a pool.
--
-- Functions answer JSON; an error is {"error": {code, message, details?, retryAfterMs?}}, where
-- details.address is hex and stands in the message as {address}. A function decides everything before it
-- writes anything, so an error leaves the store as it was.

local EPOCH_UNIT = 4294967296
local FAMILIES = { '4', '6' }
local MAX_PAGE_BYTES = 131072
-- A field of <root>:leases that is no id. It is read and written with a lease, to prove that the data is current.
local GENERATION = '#generation'
-- The most entries of a page, if each costs a few commands: no page holds up the server.
local MAX_PAGE = 150
-- The most hosts that one call looks at, even if they hold nothing that it looks for.
local MAX_HOSTS = 512

-- cjson and tostring round numbers of more than 14 digits.
local function digits(number)
  return string.format('%.0f', number)
end

local function refuse(code, message, details, retry_after_ms)
  return {
    error = { code = code, message = message, details = details, retryAfterMs = retry_after_ms },
  }
end

local function reply_of(result)
  return cjson.encode(result)
end

-- The refusal when two places of the ledger contradict each other. Neither is trusted.
local function contradiction(message)
  return refuse('RECOVERING', message .. ': voltnet ledger check --repair puts it right', nil, 250)
end

-- The refusal of a function that has read data that no function has written. Errors of the server itself (NOPERM, OOM)
-- are thrown on.
local function unreadable(reason)
  local text = type(reason) == 'table' and reason.err or tostring(reason)
  if type(reason) == 'table' and not string.find(text, 'WRONGTYPE', 1, true)
    and not string.find(text, ' is not an integer', 1, true) and not string.find(text, 'not a valid', 1, true) then
    error(reason)
  end
  return contradiction('the ledger cannot read what it holds (' .. string.gsub(text, '%c', ' ') .. ')')
end

local function readable(work)
  return function(keys, args)
    local done, answer = pcall(work, keys, args)
    return done and answer or reply_of(unreadable(answer))
  end
end

-- cjson writes an empty table as an object, so lists are built from the JSON of their elements.
local function json_list(items)
  return '[' .. table.concat(items, ',') .. ']'
end

-- The table in the JSON of a lease, or of rules; nil if it cannot be read.
local function decoded(text)
  local done, value = pcall(cjson.decode, text)
  return done and type(value) == 'table' and value or nil
end

-- The lease of an id, and its text. Nil also for a lease that cannot be read: the audit names it.
local function lease_from(text, id)
  local lease = text and decoded(text)
  local whole = lease and lease.id == id and type(lease.hex) == 'table' and type(lease.before) == 'table'
    and type(lease.network) == 'string' and type(lease.host) == 'string' and type(lease.mac) == 'string'
    and type(lease.workload) == 'string' and tonumber(lease.generation)
  if whole then
    return lease, text
  end
  return nil
end

local function lease_of(root, id)
  return lease_from(redis.call('HGET', root .. ':leases', id), id)
end

-- One page of a zset of names that begin with `prefix`, after the cursor: the JSON of what `read` makes of
-- each. Bounded by count and by bytes; the last name is the cursor of the next page.
local function page_of(key, prefix, ask, read)
  local from = ask.cursor and ('(' .. ask.cursor) or ('[' .. prefix)
  -- Names are ASCII: all with the prefix sort before it with this byte.
  local limit = math.min(ask.limit, MAX_PAGE)
  local names = redis.call('ZRANGEBYLEX', key, from, '(' .. prefix .. '\255', 'LIMIT', 0, limit + 1)
  local items = {}
  local bytes = 0
  for index, name in ipairs(names) do
    local item = read(name)
    bytes = bytes + #item
    if index > 1 and (index > limit or bytes > MAX_PAGE_BYTES) then
      return json_list(items), cjson.encode(names[index - 1])
    end
    items[index] = item
  end
  return json_list(items), 'null'
end

local function ids_key(root, host)
  return root .. ':host:' .. host .. ':ids'
end

-- The lease of an entry "network id" of a host, nil if no lease matches the entry; the id; the text of the lease.
local function lease_at(root, host, entry)
  local space = string.find(entry, ' ', 1, true) or 0
  local id = string.sub(entry, space + 1)
  local lease, text = lease_of(root, id)
  if lease and lease.host == host and lease.network == string.sub(entry, 1, space - 1) then
    return lease, id, text
  end
  return nil, id
end
