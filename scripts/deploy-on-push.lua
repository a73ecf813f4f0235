-- deploy-on-push.lua: whoever pushes a tag to this daemon's registry rolls out the services that run it.
--   neap script push deploy scripts/deploy-on-push.lua
--   docker push 127.0.0.1:5000/shop/api:live       services with this image get what was pushed, by its digest

local at = "127.0.0.1:5000/"

on "image.pushed" {
  name = "deploy-on-push",
  run = function(event)
    if not event.tag then return end
    local image = at .. event.subject
    for _, service in services.list() do
      local now = service.spec.image or ""
      if now == image or now:sub(1, #image + 1) == image .. "@" then service:update { image = `{image}@{event.digest}` } end
    end
  end,
}
