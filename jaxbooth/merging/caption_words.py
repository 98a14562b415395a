"""Word lists of the caption grammar: rules `name: alternative | alternative` for the slots of `caption_shapes`."""

WORDS = """
land_animal: dog | cat | horse | rabbit | fox | deer | bear | squirrel | wolf | hedgehog | elephant | giraffe
    | zebra | lion | tiger | leopard | kangaroo | koala | panda | monkey | gorilla | camel | goat | donkey | pony
    | moose | raccoon | badger | otter | beaver | cheetah | bison | rhinoceros | hippopotamus | llama | meerkat | frog
    | tortoise
land_animals: dogs | cats | horses | rabbits | foxes | bears | squirrels | wolves | elephants | giraffes | zebras
    | lions | kangaroos | pandas | monkeys | camels | goats | donkeys | ponies | puppies | kittens | llamas | meerkats
    | bulls
animal_look: brown | grey | white | black | small | large | young | old | spotted | sleepy | curious | wet | muddy
    | fluffy | wild | shaggy | scruffy | lonely | playful | thirsty
animal_does: standing | resting | running | walking | playing | sleeping | grazing | drinking | searching for food
    | lying in the sun | jumping | hiding | yawning | sitting
direction: up | to the left | away from the camera | straight into the camera | over its shoulder | at the ground
pet: puppy | kitten | dog | cat | rabbit | hamster | parrot | guinea pig | terrier | poodle | labrador | greyhound
    | spaniel | bulldog | dachshund | tabby cat | ginger cat | siamese cat | collie | beagle | ferret | husky
pet_look: tiny | chubby | brown | white | black and white | fluffy | sleepy | grumpy | cheerful | elderly | tired
    | happy | curious | shy | rescued | clean | long-haired
pet_does: sleeping | sitting | curled up | stretching | waiting for dinner | chewing a toy | hiding | resting
    | yawning
watching: watching | waiting | sleeping nearby | begging for a treat | looking out of the window
watches: watches | sleeps on the floor | sits by the door | plays with a string | waits patiently
bird: owl | robin | sparrow | parrot | eagle | heron | crow | pigeon | pelican | flamingo | kingfisher | woodpecker
    | peacock | swan | goose | falcon | magpie | hummingbird | stork | rooster | penguin | duck | seagull | puffin
birds: pigeons | geese | swallows | gulls | starlings | cranes | ducks | crows | pelicans | parrots | storks
bird_look: small | colourful | blue | speckled | majestic | lone | noisy | snowy | long-legged | bright yellow
perch: a bare branch | a fence post | a telephone wire | a garden fork | a rusty gate | the edge of a roof
    | a mossy rock | a bird feeder | a windowsill | a street lamp | a sailing mast | a stone statue
shore: on a muddy bank | in shallow water | on a rocky ledge | beside a pond | on a sandy beach | in tall reeds
sea_animal: dolphin | whale | sea turtle | shark | octopus | jellyfish | seahorse | stingray | seal | clownfish
    | squid | lobster | goldfish | trout | salmon | manatee | crab | eel
in_water: near a coral reef | through clear blue water | in a large aquarium | close to the surface
    | above the sea bed | in a shallow lagoon | among kelp | below a wooden boat | in a cold mountain stream
insect: butterfly | bee | ladybird | dragonfly | grasshopper | beetle | moth | snail | spider | caterpillar | ant
    | praying mantis | cricket | wasp
leafy: green leaf | wet blade of grass | fern | thistle | daisy | twig | ripe blackberry | lily pad | cabbage leaf
farm_animal: cow | sheep | pig | hen | goat | horse | donkey | turkey | lamb | calf
farm_animals: cows | chickens | sheep | pigs | goats | ducks | lambs | calves | turkeys
farm_building: barn | stable | hay shed | farmhouse | silo | chicken coop | tractor | gate | windmill
farmer: farmer | girl | boy | woman | man | volunteer | shepherd | grandmother | teenager
person: man | woman | boy | girl | teenager | student | tourist | musician | dancer | grandfather | grandmother
    | bride | cyclist | businessman | nurse | child | soldier | teacher | traveller | neighbour
    | photographer
adult: man | woman | waiter | bride | grandmother | grandfather | cook | sailor | chemist | businessman | pilot
people: people | children | students | tourists | friends | teenagers | musicians | dancers | women | men | runners
    | pensioners | families | hikers | schoolgirls | sailors
age: young | old | middle-aged | elderly | smiling | tired | serious | laughing | bearded | tall | curly-haired
    | cheerful
doing: reading a newspaper | talking on the phone | eating an ice cream | taking a photograph | waiting
    | walking a dog | playing the guitar | drawing in a notebook | drinking coffee | looking at a map
    | feeding pigeons | listening to music | pushing a pram | carrying shopping | juggling | flying a kite
    | blowing bubbles | selling balloons | tying a shoelace | riding a scooter | eating a sandwich | waving | dancing
    | sleeping on a bench | reading a book | typing on a laptop
home_act: washes the dishes | waters the plants | bakes bread | irons a shirt | plays the piano | folds the laundry
    | watches television | paints a wall | tunes a guitar | plays a board game | knits a scarf | fixes a bicycle
    | hangs a picture | peels potatoes | does homework | wraps a present | opens a letter | sweeps the floor
garment: coat | jacket | dress | sweater | shirt | scarf | skirt | hat | suit | cardigan | waistcoat | raincoat
    | kimono | apron | blouse | poncho | hoodie | gown
accessories: round glasses | a straw hat | leather boots | long gloves | a pearl necklace | headphones | sunglasses
    | a woollen cap | silver earrings | a bow tie | rubber boots | a backpack | a flower crown | a wristwatch
face: freckles | a long beard | red hair | green eyes | a shy smile | painted lips | braided hair | a wrinkled face
    | a thoughtful expression | short grey hair | a curled moustache | a nose ring
backdrop: wall | curtain | background | brick wall | door | studio backdrop
public_place: in a park | on a crowded train | at a bus stop | outside a cafe | on the beach | in a library
    | at the airport | on a city street | in a museum | in front of a fountain | on the steps of a church
    | in a shopping centre | by the river | on a balcony | at the zoo | in a playground | on a pier | under a bridge
    | at a flea market | on a ferry
crowded: a busy market | a railway station | the old town | an airport hall | a narrow alley | the rain | a festival
group_does: sitting on the grass | waiting in a queue | posing for a picture | laughing together
    | walking hand in hand | playing cards | singing | having a picnic | dancing in a circle | sharing a meal
    | looking at paintings | chatting
family: young family | couple | father and son | mother and daughter | pair of twins | newly married couple
family_does: walking | having a picnic | flying a kite | riding bicycles | building a sandcastle
    | posing for a photo | planting a tree | picking berries | setting up a tent | roasting marshmallows
event: a summer concert | a street parade | a birthday party | a wedding | a football match | a food festival
    | a fireworks show | a graduation ceremony | a country fair | a school play | a book signing | a village dance
    | a garden party
holdable: bouquet of flowers | surfboard | baby | trophy | birthday cake | watermelon | red balloon | basket of eggs
    | violin | large fish | snow globe | teddy bear | lantern | microphone | paintbrush | pineapple
small_thing: key | seashell | candle | coin | seedling | pocket watch | ring | letter | pine cone | paper crane
    | feather
bag: backpack | suitcase | handbag | basket | shopping bag | violin case | briefcase | duffel bag
doneness: freshly made | steaming | crispy | home-made | spicy | cold | golden | lightly burnt
side: green salad | boiled carrots | garlic bread | french fries | steamed broccoli | pickled cucumber
    | melted cheese | fresh basil | fried mushrooms | lemon wedges | black olives | toasted almonds | white rice
    | grilled peppers | corn | sour cream | roasted pumpkin | parsley | baked beans | avocado
cake: chocolate cake | cheesecake | apple pie | carrot cake | wedding cake | lemon tart | sponge cake | banana bread
    | birthday cake | strawberry shortcake | cherry pie
topping: whipped cream | fresh strawberries | candles | sugar flowers | chopped nuts | raspberries | icing
    | sprinkles | mint leaves | caramel sauce | chocolate shavings | powdered sugar
table: a wooden table | a marble counter | a checked tablecloth | a picnic blanket | a round table
    | a kitchen counter | a glass table | a garden table | a silver tray | a long dining table | a bar | a slate
hot_drink: coffee | green tea | hot chocolate | cappuccino | mint tea | espresso | black tea | mulled wine
baked: croissant | cinnamon roll | muffin | doughnut | scone | bagel | chocolate biscuit | slice of toast | pretzel
basket: basket | crate | wicker tray | paper bag | wooden box | tin bucket | china bowl
fruit: apples | pears | peaches | oranges | lemons | grapes | cherries | bananas | plums | strawberries | mangoes
    | kiwis | figs | apricots | limes | melons | pomegranates | blueberries
vegetable: tomatoes | carrots | onions | potatoes | cabbages | aubergines | peppers | leeks | radishes | spinach
    | beetroot | courgettes | garlic | celery | pumpkins | artichokes | asparagus | turnips
market: a farmers' market | a street stall | the village shop | a night market | a floating market
    | a covered market
preserve: honey | strawberry jam | peanut butter | orange marmalade | olive paste | lemon curd | pickles
    | soft cheese
bread: rye bread | sourdough | white bread | corn bread | raisin bread | focaccia | brown bread
wood: wooden | bamboo | oak | walnut | scratched | plastic
drink: red wine | orange juice | iced tea | milk | lemonade | beer | water | champagne | apple cider | tomato juice
    | whisky
colour: red | blue | green | yellow | orange | purple | pink | brown | black | white | grey | turquoise | beige
    | crimson | golden | silver | navy blue | pale blue | dark green | lime green | lavender | maroon | cream | teal
    | scarlet | violet
thing_look: old | new | broken | shiny | dusty | rusty | antique | small | heavy | expensive | simple | worn
    | delicate | elegant | cracked | wet | forgotten | colourful
thing: camera | clock | lamp | teapot | book | hat | umbrella | candle | telephone | radio | typewriter | mirror
    | vase | violin | suitcase | lantern | kettle | wallet | watch | globe | boot | glove | coffee mug | laptop
    | calculator | record player | sewing machine | microscope | telescope | pair of scissors | pair of glasses
    | hairbrush | compass | toothbrush | keyboard | fan | padlock | thermometer | stapler | pencil case
    | magnifying glass | music box | helmet
household_item: armchair | bookshelf | table lamp | rug | teapot | wall clock | mirror | vase | stool | cushion
    | blanket | candlestick | picture frame | washing machine | refrigerator | toaster | kettle | bathtub | sink
    | bucket | broom | coat rack | wardrobe | chest of drawers | ladder | fire extinguisher | birdcage | watering can
    | rocking chair
things_plural: books | bottles | pencils | shoes | cups | buttons | keys | stamps | postcards | marbles | seashells
    | spoons | towels | cushions | candles | boxes | hats | stones | coins | bricks | baskets | jars | records
    | newspapers | toys | paint tubes | balls of wool | light bulbs | umbrellas | plates | ribbons | lanterns
    | playing cards | clay pots
material: wooden | metal | glass | ceramic | plastic | leather | brass | stone | copper | porcelain | marble | steel
    | cardboard | velvet | wicker | bronze | concrete
surface: a wooden desk | a windowsill | a stone floor | a shelf | a bedside table | a white sheet | a kitchen table
    | a park bench | a carpet | a pile of books | a doorstep | a glass shelf | a mantelpiece
    | the back seat of a car | a piano | a rock | a tiled floor | wet sand | a straw mat | a sofa
container: box | drawer | basket | glass jar | suitcase | bucket | bowl | wooden crate | shopping trolley | trunk
part: handle | lid | inside | back | edge | front | label | corner | underside
toy: teddy bear | wooden train | rag doll | spinning top | toy robot | rubber duck | kite | puzzle | rocking horse
    | toy boat | building block | plush rabbit | yo-yo | doll's house | tin soldier | toy aeroplane
tool: hammer | saw | screwdriver | paintbrush | spanner | chisel | drill | axe | shovel | rake | pair of pliers
    | plane
workshop: workshop | garage | garden shed | potter's studio | bakery | print shop | laboratory | bicycle shop
    | forge
instrument: guitar | cello | double bass | saxophone | trumpet | banjo | harp | accordion | drum | trombone
wall: a brick wall | a white wall | a wooden fence | a stone wall | a shop window | a garage door | a painted wall
    | a tiled wall | an iron railing | a tree trunk | a garden gate
car: car | van | lorry | taxi | bus | tractor | convertible | pickup truck | fire engine | ambulance | sports car
    | jeep | delivery van | camper van | limousine | double-decker bus | police car | digger | minibus
vehicle_look: vintage | modern | rusty | brand new | muddy | abandoned | small | fast | restored | dented | electric
vehicle_detail: a surfboard on the roof | flat tyres | its doors open | bright headlights | a cracked windscreen
    | luggage tied to the top | a dog in the passenger seat | shiny chrome bumpers | a flag on its bonnet
vehicle_part: dashboard | steering wheel | engine | back seat | front wheel | number plate | headlight | rear window
roadside: on a city street | in front of a garage | beside a field | under a tree | in a multi-storey car park
    | outside a hotel | on a gravel drive | by the side of a motorway | near a petrol station | on a snowy road
    | by the sea
along_road: along a country lane | down a steep hill | through a tunnel | across a bridge | along the coast
    | past a church | through a forest | on a dusty track | over cobblestones | through heavy rain
    | around a roundabout
bike: bicycle | motorcycle | scooter | mountain bike | tandem | moped | racing bike | tricycle
train: steam train | commuter train | tram | freight train | high-speed train | underground train | cable car
    | locomotive
train_does: crossing a viaduct | arriving at a station | passing through snowy hills | leaving a tunnel
    | waiting at a platform | rolling past wheat fields | climbing a mountain | standing in an old depot
stop: a small station | a windy platform | a crowded terminal | a tram stop | an underground station
boat: sailing boat | canoe | rowing boat | ferry | fishing boat | yacht | kayak | cargo ship | gondola | barge
    | motorboat
boats: sailing boats | canoes | fishing boats | kayaks | barges | yachts | rowing boats | cargo ships
boat_look: small | wooden | white | old | striped | half-sunken | luxurious | freshly painted
boat_does: floating on a calm lake | moored in a harbour | drifting down a river | anchored in a bay
    | tied to a jetty | passing under a bridge | racing across the sea | lying on a pebble beach | crossing a canal
aircraft: helicopter | passenger jet | hot air balloon | glider | biplane | seaplane | fighter jet | propeller plane
    | drone
airfield: a small airfield | an airport gate | an air show | a grass runway | a hangar | a desert airbase
busy_road: a motorway | a city bridge | a ring road | the main street | a wide avenue | a coastal road
building: house | church | castle | lighthouse | barn | cottage | temple | museum | hotel | library | skyscraper
    | factory | windmill | theatre | school | mosque | palace | railway station | greenhouse | log cabin | observatory
    | town hall | bakery | monastery | cathedral | warehouse | bungalow | farmhouse | stadium | hospital
building_look: red brick | old | modern | abandoned | whitewashed | tall | ruined | grand | tiny | crooked
    | half-timbered | brightly painted | medieval | sunlit | snow-covered | derelict | thatched
building_setting: on a hill | by a lake | at the edge of a forest | in a valley | near the sea | in the old town
    | surrounded by trees | on a rocky coast | beside a canal | in a wheat field | on a quiet street | in the desert
    | behind a stone wall | under a stormy sky | in thick fog | at the foot of a mountain
building_detail: stained glass windows | blue shutters | a bell tower | a spiral staircase | high ceilings
    | ivy on its walls | stone columns | a domed roof | a flower garden | broken windows | wooden beams
    | arched doorways | a clock tower | a red roof | iron balconies | painted tiles
town: a fishing village | a mountain village | the old town | a modern city | a medieval town | a seaside resort
    | a quiet suburb | a busy capital | the harbour district | a desert town | a student town
road: road | path | trail | lane | railway line | river | canal | stream
road_look: dusty | narrow | long | empty | cobbled | shady | steep | frozen | lonely
wide_view: a mountain range | a green valley | the city skyline | a sandy beach | rolling hills | a frozen lake
    | a pine forest | a vineyard | the ocean | a desert | a tropical island | rice terraces | a harbour | snowy peaks
    | a canyon | a waterfall | golden wheat fields | a misty moor | a winding river | chalk cliffs | an olive grove
    | a rainforest | a volcano | rooftops | a swamp | a glacier | a lavender farm | sand dunes | a rocky coastline
    | suburban gardens
viewpoint: a hilltop | a hotel balcony | an aeroplane window | a church tower | a hot air balloon | a moving train
    | the deck of a ship | a rooftop terrace | a cable car | a treehouse
sky: clear blue | cloudy | stormy | starry | pink | grey | hazy | dramatic | golden | purple | moonlit | overcast
when: at sunset | at night | in the morning | on a sunny day | in winter | in autumn | at dawn | in the rain
    | in spring | on a foggy morning | in summer | at noon | after a storm | on a windy afternoon | in the moonlight
    | in the snow | during the rush hour | on a cloudy day | in the evening light
outdoors: in a meadow | in the snow | on a hillside | beside a river | in a forest clearing | on a dirt road
    | in tall grass | under an oak tree | on the beach | near a waterhole | in a garden | by a wooden fence
    | in an orchard | on a farm | among autumn leaves | at the edge of a pond | in a rocky field | on a lawn
    | on a mountain path
room: kitchen | bedroom | living room | bathroom | office | attic | hallway | classroom | dining room | nursery
    | study | waiting room | cellar | conservatory | dressing room | ballroom
room_look: bright | cosy | modern | untidy | empty | spacious | dimly lit | minimalist | tiny | elegant
    | newly painted | old-fashioned | sunny | rustic
in_room: in the kitchen | in a bright living room | in a small bedroom | in the bathroom | in a dusty attic
    | in an office | in the hallway | on the balcony | in a sunny conservatory | by the fireplace | in a classroom
    | in a hotel room
indoor_spot: on a sofa | on the kitchen floor | in a cardboard box | on a striped rug | under the bed
    | by the fireplace | on a windowsill | in a laundry basket | on a pile of pillows | behind a curtain
    | on a wooden chair | at the front door
furniture: sofa | armchair | bed | desk | bookcase | dining table | wardrobe | cupboard | bench | piano | cabinet
    | stool
furnishing: wooden floors | a large window | a patterned carpet | white walls | a fireplace | framed photographs
    | hanging plants | a chandelier | floral wallpaper | a skylight | bunk beds | tall bookshelves | striped curtains
    | a grandfather clock | a glass door | exposed bricks | a ceiling fan | a round mirror
bridge: stone bridge | wooden footbridge | suspension bridge | rope bridge | railway bridge | drawbridge
    | iron bridge
water_body: a river | a canal | a deep gorge | a quiet stream | a reservoir | a lake | an estuary | a pond
seat: bench | deckchair | hammock | rocking chair | swing | picnic table | wooden chair
street_detail: hanging laundry | flower pots on the steps | parked scooters | colourful shutters | market stalls
    | paper lanterns | street musicians | cafe tables | stone arches | neon signs
statue: bronze statue | marble fountain | war memorial | stone lion | clock tower | sundial | stone obelisk
    | bandstand
square: a town square | a formal garden | a roundabout | a courtyard | a public park | a cemetery
shop: bookshop | bakery | pharmacy | barber shop | flower shop | toy shop | butcher's shop | antique shop | cafe
    | record shop | shoe shop | tailor's shop | cheese shop
flower: rose | sunflower | tulip | daisy | lily | poppy | orchid | dandelion | iris | dahlia | lotus | hibiscus
    | foxglove
flowers: roses | sunflowers | tulips | daisies | lilies | poppies | orchids | daffodils | irises | dahlias
    | carnations | hydrangeas | bluebells | peonies | crocuses | marigolds | geraniums
growing_place: beside a garden path | on a sunny balcony | along an old wall | between paving stones
    | in a window box | in a greenhouse | at the edge of a field | around a mailbox | under a hedge
    | in a hanging basket
petal_detail: drops of dew on its petals | a bee in its centre | curled petals | a blurred background | a bent stem
tree: oak | maple | willow | birch | apple | cherry | palm | cypress | chestnut | pine | olive | fig | poplar
tree_look: tall | bare | blossoming | gnarled | fallen | lone | ancient | leafy | lopsided | decorated
house_plant: cactus | fern | rubber plant | bonsai tree | aloe | spider plant | orchid | basil plant | palm
    | succulent
mushrooms: mushrooms | toadstools | chanterelles | ferns | strawberries | garlic flowers
forest_floor: fallen leaves | moss and stones | pine needles | tree roots | wet grass | rotting logs
art_style: an oil painting | a watercolour | a pencil sketch | a charcoal drawing | a woodcut | a children's drawing
    | a cartoon | a mosaic | an ink illustration | a vintage postcard | a pastel drawing | a comic strip
    | a tapestry | a paper cutout | pixel art | a digital illustration | an impressionist painting
    | a stained glass window | an etching
photo_style: a black and white photo | a blurry photo | a polaroid | a close up | a studio photograph
    | a film photograph | an old sepia photograph | a low angle shot | a candid photo | a high contrast photo
    | a snapshot | a cropped photo
pattern: striped | checked | floral | polka dot | paisley | zigzag | tartan | plain | geometric | embroidered
    | chevron
shape: circle | heart | triangle | star | square | spiral | hexagon | diamond | ring | crescent
shapes: circles | triangles | squares | spirals | dots | waves | stars | diamonds | rectangles
slogan: open today | summer sale | for rent | go faster | grand tour | see the world | made by hand
outdoor_sport: skiing down a slope | surfing a big wave | climbing a cliff | skateboarding in a half-pipe
    | paddling a canoe | running along a river | riding a horse over a fence | snowboarding off a ramp
    | cycling up a mountain | fishing from a pier | hiking with a heavy pack | practising yoga on a beach
    | rowing across a lake | windsurfing in a bay | throwing a frisbee
sports_gear: tennis racket | football | basketball | skateboard | baseball bat | surfboard | bowling ball
    | golf club | cricket bat | pair of skis | ice skate | boxing glove | hockey stick | shuttlecock
worker_does: a baker kneading dough | a carpenter sanding a plank | a nurse checking a chart
    | a potter shaping a bowl | a waiter carrying three plates | a postman delivering a parcel
    | a mechanic repairing an engine | a barber trimming a beard | a florist tying a bouquet | a welder wearing a mask
    | a fisherman mending a net | a teacher writing on a blackboard | a surgeon putting on gloves
    | a firefighter holding a hose | a tailor measuring a sleeve | a gardener pruning a hedge
    | a painter mixing colours | a violinist tuning her instrument | a scientist looking into a microscope
    | a builder laying bricks | a cook tossing a pancake | a police officer directing traffic
    | a vet examining a parrot | a blacksmith striking hot iron | a dentist holding a mirror
    | a window cleaner on a ladder | a beekeeper lifting a frame | a judge reading a document
    | a cashier counting money | a pilot checking the controls | a shoemaker stitching a boot
    | a glassblower turning a pipe | a librarian sorting cards | a miner pushing a cart | a weaver sitting at a loom
weather: dark clouds | a rainbow | a thunderstorm | thick fog | a full moon | falling snow | a bolt of lightning
    | morning mist | the northern lights | heavy rain | a meteor shower | smoke | a pale sun
weather_event: a heavy snowfall | a flood | a thunderstorm | the rain | a sandstorm | strong wind | a hail shower
    | a hard frost
covering: snow | mud | autumn leaves | ice | stickers | dust | flowers | cherry blossom
occasion: breakfast | a wedding | a birthday | two | lunch | a family dinner | afternoon tea | a holiday feast
tableware: silver cutlery | china plates | wine glasses | folded napkins | tall candles | a soup ladle | chopsticks
    | a salt shaker | a cake stand | coffee cups | a bread basket | a water jug
number: two | three | four | five | several | a few | some | many
dish: spaghetti | fried rice | noodles | mashed potatoes | roast chicken | grilled salmon | pancakes
    | scrambled eggs | dumplings | lasagne | sushi | tacos | pizza | risotto | meatballs | sausages | waffles
    | fish and chips | ravioli | paella | falafel | onion rings | shrimp salad | stuffed peppers | spring rolls
    | roast beef | smoked ham | kebabs | pork chops | cheese sandwiches
soup: tomato soup | vegetable curry | beef stew | porridge | lentil soup | chilli | pea soup | rice pudding
    | chicken broth | cereal | fruit salad | yoghurt | popcorn | custard | dal
bowl: bowl | large pot | blue dish | deep plate | wooden bowl | steaming pan | mug
plate: plate | tray | wooden board | large platter | blue dish | lunch box | paper plate
feather: white | brown | grey | black | blue | green | red | yellow | spotted | glossy | ruffled | iridescent
petal_colour: red | white | yellow | pink | purple | orange | blue | violet | crimson | cream | pale pink | golden
table_item: teapot | coffee pot | candlestick | vase | jug | sugar bowl | tray | lemon squeezer | toaster | kettle
    | cake tin | rolling pin | egg timer | pepper mill | corkscrew | mixing bowl
land: a green valley | rolling hills | a pine forest | a vineyard | a desert | rice terraces | golden wheat fields
    | a misty moor | an olive grove | a rainforest | a lavender farm | sand dunes | suburban gardens | a canyon
    | snowy peaks | a swamp | an orchard | a birch wood | pastures | a national park
tree_fruit: apples | pears | peaches | oranges | lemons | cherries | plums | figs | apricots | limes | mangoes
    | olives
in_weather: in the rain | in falling snow | in strong wind | under dark clouds | in thick fog
    | during a thunderstorm
shelter_from: the rain | the midday sun | the wind | a hail shower | a snowstorm
player: tennis player on a clay court | footballer on a muddy pitch | basketball player in an indoor arena
    | goalkeeper on a floodlit field | cricketer on a village green | rugby player on a wet pitch
    | gymnast in a school hall | ice hockey player on a frozen pond | volleyball player on the beach
    | golfer on a fairway | boxer in the ring | figure skater on an ice rink | fencer in a white mask
    | sprinter on a running track | diver by the swimming pool | baseball player in a packed stadium
    | weightlifter at the gym | archer on a lawn | judoka on a mat | table tennis player in a sports hall
players: footballers | gymnasts | runners | wrestlers | rowers | swimmers | boxers | skaters | jockeys | cyclists
    | tennis players | weightlifters
sports_place: in a packed stadium | at the world championship | behind the barrier | in the rain
    | from the front row | with flags and scarves | during the final
plays: celebrating a point | stretching | waiting for the whistle | falling over | taking a break
    | talking to the coach | drinking from a bottle | in full concentration | raising both arms | out of breath
    | shaking hands with an opponent | waving to the crowd
"""
