-- A ledger that nobody has used: whether it is a new fleet's is asked by one host for all.

-- So long the others wait for the one that asks. Then somebody else may: that one may have nobody whom it can ask.
local ASK_MS = 2000

-- Whether a host is to ask its peers what they have seen.
local function is_asker(root, host, now)
  local memory = memory_of(root)
  local asker = memory.asker
  if not asker or now >= asker.since + ASK_MS or now < asker.since then
    asker = { host = host, since = now }
    memory.asker = asker
  end
  return asker.host == host
end
