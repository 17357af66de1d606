// Calls everything that the libraries of Segment and RudderStack offer, with nothing changed but the host.
// node send.js HOST WRITE_KEY; prints what became of it and ends.
import { createRequire } from 'node:module'
import { Analytics } from '@segment/analytics-node'

const [host, writeKey] = process.argv.slice(2)
const failed = []

const segment = new Analytics({ host, writeKey, maxRetries: 0 })
segment.on('error', (e) => failed.push(`segment: ${e.code} ${e.reason}`))
segment.identify({ userId: 'segment', traits: { email: 'segment@example.test', plan: 'gold', age: 41 } })
segment.track({ userId: 'segment', event: 'Order Completed', properties: { total: 30.5, items: [{ sku: 'tea', n: 1 }], gift: true, note: '飛脚 "quoted"\n' }, timestamp: new Date(Date.now() - 60_000) })
segment.page({ userId: 'segment', name: 'Home', category: 'Shop', properties: { url: 'https://shop.example/' } })
segment.screen({ userId: 'segment', name: 'Cart' })
segment.group({ userId: 'segment', groupId: 'acme', traits: { employees: 12 } })
segment.track({ anonymousId: 'segment-anonymous', event: 'Looked' })
segment.alias({ userId: 'segment', previousId: 'segment-anonymous' })
await segment.closeAndFlush()

// Its ES module is not one that node can load.
const RudderAnalytics = createRequire(import.meta.url)('@rudderstack/rudder-sdk-node')
const rudder = new RudderAnalytics(writeKey, { dataPlaneUrl: host, retryCount: 0, flushAt: 20, logLevel: 'none', errorHandler: (e) => failed.push(`rudderstack: ${e.message}`) })
rudder.flushed = true // or the first call is a batch of its own
rudder.identify({ userId: 'rudderstack', traits: { email: 'rudderstack@example.test', plan: 'silver' } })
rudder.track({ userId: 'rudderstack', event: 'Order Completed', properties: { total: 7 }, timestamp: new Date(Date.now() - 60_000) })
rudder.page({ userId: 'rudderstack', name: 'Home', properties: { url: 'https://shop.example/' } })
rudder.screen({ userId: 'rudderstack', name: 'Cart' })
rudder.group({ userId: 'rudderstack', groupId: 'acme', traits: { employees: 12 } })
rudder.track({ anonymousId: 'rudderstack-anonymous', event: 'Looked' })
rudder.alias({ userId: 'rudderstack', previousId: 'rudderstack-anonymous' })
await rudder.flush()

console.log(JSON.stringify({ failed }))
process.exit(0)
