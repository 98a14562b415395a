"""Sentence shapes of the caption grammar: rules `name: alternative | alternative`, with `<name>` for a slot.

Alternatives are as likely as each other; one that stands twice is twice as likely. A slot stands only where whatever
its rule gives makes sense, so that captions read as people write them. "a" becomes "an" by itself before a vowel; words
that sound otherwise, such as "uniform", must not follow an article.
"""

SHAPES = """
caption: <animals> | <animals> | <humans> | <humans> | <meal> | <things> | <things> | <transport> | <place>
    | <place> | <plants> | <art> | <sports> | <at_work> | <weather_scene> | <table_scene> | <brief> | <brief>
    | <detailed> | <detailed> | <detailed>

brief: a <thing_look> <colour> <thing>
    | a <material> <household_item> <in_room>
    | a <person> <doing>
    | <number> <land_animals> <animal_does>
    | <people> at <event>
    | a <bird_look> <bird> <shore>
    | a <plate> of <dish>
    | <petal_colour> <flowers> on <surface>
    | a <vehicle_look> <colour> <car>
    | a <building_look> <building> <when>
    | <wide_view> <when>
    | a <colour> <pattern> <garment>
    | <art_style> of <flowers>
    | <tree_fruit> in a <basket>

detailed: a <age> <person> in a <colour> <garment> <doing> <public_place> <when>
    | a <animal_look> <land_animal> <animal_does> <outdoors> with <wide_view> in the background
    | a <room_look> <room> with <furnishing>, a <colour> <furniture> and a <thing_look> <thing> on <surface>
    | a <building_look> <building> with <building_detail> and a <vehicle_look> <colour> <car> parked in front of it
    | <art_style> of a <age> <person> wearing <accessories> and a <colour> <garment>, <doing> <public_place>
    | <table> with a <bowl> of <soup>, a <plate> of <dish>, a glass of <drink> and <tableware>
    | a <person> wearing <accessories> and a <colour> <garment> is <doing> while a <pet> <watches>
    | a <boat_look> <boat> <boat_does> <when> with <wide_view> in the distance and <birds> overhead
    | a <colour> <bike> leaning against <wall> next to a <container> full of <things_plural>, seen <when>
    | <photo_style> of <number> <people> <group_does> <public_place> <when>, all of them in <colour> hats
    | view of <wide_view> from <viewpoint> <when>, with a <road_look> <road> leading to a <building_look> <building>
    | a <pet_look> <pet> <pet_does> <indoor_spot> in a <room_look> <room> with <furnishing> and <furnishing>

animals: a <animal_look> <land_animal> <animal_does> <outdoors>
    | a <land_animal> <animal_does> <outdoors> <when>
    | two <land_animals> <animal_does> <outdoors>
    | a <pet_look> <pet> <pet_does> <indoor_spot>
    | a <pet_look> <pet> <pet_does> <indoor_spot> next to a <colour> <household_item>
    | close up of a <animal_look> <land_animal> looking <direction>
    | a <bird_look> <bird> perched on <perch>
    | a <bird> with <feather> feathers standing <shore>
    | a flock of <birds> flying over <wide_view> <when>
    | a <sea_animal> swimming <in_water>
    | an underwater photo of a <sea_animal> <in_water>
    | macro shot of a <insect> on a <leafy>
    | a <insect> resting on a <flower> <outdoors>
    | a mother <land_animal> with her young <outdoors>
    | the <pet> is <watching> while a <person> <home_act>
    | <number> <land_animals> <animal_does> near <wide_view>
    | a <farm_animal> in front of a <colour> <farm_building>
    | a <farmer> feeding <farm_animals> <outdoors>

humans: a <person> <doing> <public_place>
    | a <age> <person> <doing> <public_place> <when>
    | a <person> in a <colour> <garment> <doing> <public_place>
    | a <person> wearing <accessories> and a <pattern> <garment>
    | portrait of a <age> <person> with <face>
    | portrait of a <person> with <face> against a <colour> <backdrop>
    | <number> <people> <group_does> <public_place>
    | a group of <people> <group_does> <public_place> <when>
    | a <person> <home_act> <in_room>
    | a <age> <person> <home_act> while a <pet> <watches>
    | a <person> holding a <holdable> and smiling at the camera
    | a <family> <family_does> <outdoors>
    | a <person> carrying a <colour> <bag> through <crowded>
    | silhouette of a <person> <doing> <when>
    | the hands of a <age> <person> holding a <small_thing>
    | a crowd of <people> at <event>

meal: a <bowl> of <soup> with <side>
    | a <plate> of <dish> with <side>
    | a <plate> of <dish> and a glass of <drink> on <table>
    | <doneness> <dish> served with <side> and <side>
    | a slice of <cake> with <topping> on <table>
    | a <cake> decorated with <topping> and <topping>
    | a cup of <hot_drink> next to a <baked>
    | overhead view of <dish>, <side> and <side> on <table>
    | a <basket> of ripe <fruit> and <fruit> on <table>
    | fresh <vegetable> and <vegetable> for sale at <market>
    | slices of <fruit> arranged on a <colour> plate
    | a jar of <preserve> beside a loaf of <bread>
    | sliced <bread> with <preserve> for breakfast
    | a chef's knife and chopped <vegetable> on a <wood> board
    | a bottle of <drink> and two glasses on <table>

things: a <thing_look> <thing> on <surface>
    | a <thing_look> <thing> and a <colour> <thing> on <surface>
    | a <colour> <thing> beside a <material> <household_item>
    | a <material> <household_item> <in_room>
    | a row of <colour> <things_plural> on <surface>
    | a <container> full of <colour> <things_plural>
    | product photo of a <colour> <material> <household_item> on a <colour> background
    | an assortment of <things_plural> and <things_plural> spread out on <surface>
    | close up of the <part> of a <thing_look> <thing>
    | a <toy> lying on <surface> <in_room>
    | a <colour> and <colour> <toy> next to a <container>
    | a <tool> and a <tool> hanging on the wall of a <workshop>
    | a pile of <things_plural> in the corner of a <room_look> <room>
    | a <instrument> leaning against <wall>
    | a <colour> <garment> hanging on <wall>
    | the <thing> that a <person> left on <surface>

transport: a <colour> <car> parked <roadside>
    | a <vehicle_look> <colour> <car> driving <along_road>
    | a <vehicle_look> <car> with <vehicle_detail> <roadside>
    | a <person> riding a <bike> <along_road>
    | a <colour> <bike> leaning against <wall>
    | a <colour> <train> <train_does>
    | a <train> <train_does> <when>
    | a <boat_look> <boat> <boat_does>
    | <number> <boats> <boat_does> <when>
    | a <aircraft> flying over <wide_view>
    | a <colour> <aircraft> parked at <airfield>
    | heavy traffic on <busy_road> <when>
    | passengers waiting for a <train> at <stop>
    | the <vehicle_part> of a <vehicle_look> <car>

place: a <building_look> <building> <building_setting>
    | a <building_look> <building> with <building_detail> <building_setting>
    | the <material> facade of a <building> in <town>
    | a <road_look> <road> winding through <land>
    | view of <wide_view> from <viewpoint>
    | aerial photograph of <wide_view> <when>
    | <wide_view> under a <sky> sky
    | a <room_look> <room> with <furnishing> and <furnishing>
    | a <room_look> <room> with a <colour> <furniture> and <furnishing>
    | interior of a <building> with <building_detail>
    | a <colour> <furniture> in the corner of a <room_look> <room>
    | a <bridge> over <water_body> <when>
    | an empty <seat> facing <wide_view>
    | narrow street in <town> with <street_detail>
    | a <statue> in the middle of <square>
    | a sign above the door of a <shop> in <town>
    | the window of a <shop> with <things_plural> on display

plants: a bunch of <petal_colour> <flowers> in a <material> vase
    | <petal_colour> <flowers> growing <growing_place>
    | close up of a <petal_colour> <flower> with <petal_detail>
    | a field of <flowers> under a <sky> sky
    | a <tree_look> <tree> tree <building_setting>
    | rows of <tree> trees along <water_body>
    | a potted <house_plant> on <surface>
    | a <house_plant> in a <colour> pot <in_room>
    | wild <mushrooms> among <forest_floor>
    | a <farmer> picking <tree_fruit> from a tree

art: <art_style> of a <land_animal> <animal_does> <outdoors>
    | <art_style> of a <building_look> <building> <building_setting>
    | <art_style> of <wide_view> <when>
    | <art_style> of a <age> <person> <doing>
    | <art_style> of a <basket> of <fruit> on <table>
    | <art_style> of a <colour> <car> <roadside>
    | <photo_style> of a <thing_look> <thing> on <surface>
    | <photo_style> of a <person> <doing> <public_place>
    | <photo_style> of a <pet> <pet_does> <indoor_spot>
    | a <pattern> pattern in <colour>, <colour> and <colour>
    | a logo of a <colour> <land_animal> inside a <shape>
    | a mural of <flowers> and <birds> on the side of a <building>
    | a poster of a <bike> with the words <slogan>
    | a <shape> made of <things_plural> on a <colour> background
    | an abstract painting with <colour> <shapes> and <colour> lines

sports: a <player> <plays>
    | a <age> <player> <plays> <when>
    | <number> <players> in <colour> shirts warming up
    | fans cheering for <players> <sports_place>
    | a <person> <outdoor_sport> <when>
    | a <age> <person> <outdoor_sport> with a <pet> nearby
    | a <colour> <sports_gear> on <surface>
    | a trophy beside a <sports_gear> on <surface>

at_work: <worker_does> <when>
    | <worker_does> in <town>
    | <worker_does> while <people> look on
    | <photo_style> of <worker_does>
    | a <workshop> with <things_plural> and a <tool> on the bench
    | <worker_does> beside a <colour> <household_item>

weather_scene: <weather> over <wide_view>
    | <wide_view> after <weather_event>
    | a <person> with a <colour> umbrella walking through <town> <in_weather>
    | a <colour> <car> covered in <covering> <roadside>
    | <weather> seen from the window of a <building>
    | <land_animals> sheltering from <shelter_from> under a <tree> tree

table_scene: <table> set for <occasion> with <tableware> and <petal_colour> <flowers>
    | a <person> preparing <dish> for <occasion> <in_room>
    | <people> sharing a <plate> of <dish> at <event>
    | <tableware> and a <colour> <table_item> on <table>
    | a <adult> pouring <drink> into a glass <in_room>
    | a <pet> looking at a <bowl> of <soup> on <table>
"""
